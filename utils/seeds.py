"""Randomness by name: every stream follows from (seed, what it is for), never from what was drawn before it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A stream of its own for (seed, keys): Philox (Salmon et al. 2011) with the keys' hash as its 128-bit key.

    1 and "1" are different keys, and ("ab", "c") differs from ("a", "bc").
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(key=_philox_key(seed, *keys)))


def _philox_key(*keys: int | str) -> int:
    parts = (f"s{key}" if isinstance(key, str) else f"i{int(key)}" for key in keys)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def uniforms(seed: int, step: int, records: Sequence[int | str], samples: int, tokens: int) -> np.ndarray:
    """float64 [len(records), samples, tokens] in [0, 1) for sampling by inverse CDF.

    A row depends on (seed, step, record, sample) alone: not on the other records, their order or their number.
    A larger `tokens` lengthens every row and changes none of its beginning.
    """
    import numpy as np

    rows = np.empty((len(records), samples, tokens), dtype=np.float64)
    for index, record in enumerate(records):
        for sample in range(samples):
            rows[index, sample] = generator(seed, "sample", step, record, sample).random(tokens)
    return rows


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch, for libraries that draw from them."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
