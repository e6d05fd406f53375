"""From a teacher to couplings of noise and endpoint, and the buffer that keeps them in memory."""

from chordflow.couplings.buffer import BufferConfig, CouplingBatch, CouplingBuffer
from chordflow.couplings.generate import CouplingConfig, endpoints
from chordflow.couplings.observations import DatasetConfig, Observations, Split, open_split

__all__ = [
    "BufferConfig",
    "CouplingBatch",
    "CouplingBuffer",
    "CouplingConfig",
    "DatasetConfig",
    "Observations",
    "Split",
    "endpoints",
    "open_split",
]
