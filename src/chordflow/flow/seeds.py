"""Randomness as a pure function of what it is for.

Noise, times and orders are drawn from generators that are seeded by names and counters (the run's seed, a
purpose, a step), so that a run repeats from its seed and resumes without any generator state.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from names and counters, by SHA-256.

    Args:
        parts: such as `(seed, "couplings", block)`; their types and order matter.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator seeded by `derive_seed(*parts)`.

    Drawing on the CPU makes the values independent of the device on which a network runs.
    """
    return torch.Generator().manual_seed(derive_seed(*parts))
