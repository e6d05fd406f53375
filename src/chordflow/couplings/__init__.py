"""From a teacher to couplings of noise and endpoint, and the buffer that keeps them in memory."""

from chordflow.couplings.blocks import CouplingBatch, Needs, Share
from chordflow.couplings.buffer import CouplingBuffer
from chordflow.couplings.config import LEAST_STEPS, BufferConfig, CouplingConfig
from chordflow.couplings.observations import (
    TOLERANCE_S,
    DatasetConfig,
    Observations,
    Split,
    check_fits,
    open_split,
)

__all__ = [
    "LEAST_STEPS",
    "TOLERANCE_S",
    "BufferConfig",
    "CouplingBatch",
    "CouplingBuffer",
    "CouplingConfig",
    "DatasetConfig",
    "Needs",
    "Observations",
    "Share",
    "Split",
    "check_fits",
    "open_split",
]
