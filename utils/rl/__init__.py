"""What the online RL scripts call: sampling, packed groups, log-probs, advantages, losses, checkpoints.

Shapes, everywhere: `_B` prompts of a batch, `_G` samples per prompt, `_S` = _B * _G samples, `_T` tokens of a padded
completion, `_N` completion tokens of all samples laid end to end (sample by sample), `_P` columns of the left-padded
prompt, `_W` columns of a packed row, `_V` vocabulary.
"""
