"""The FinQA domain: records, programs, answers, prompts and the generated data set. Imports no torch."""
