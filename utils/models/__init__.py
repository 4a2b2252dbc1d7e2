"""Language models on disk and in memory: tokenizer, policy, adapters, frozen reference."""
