"""The exported graphs in ONNX Runtime: from an observation's inputs and noise to a normalised chunk.

Shapes: H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from chordflow_runtime.external_data import external_files
from chordflow_runtime.images import Floats
from chordflow_runtime.manifest import Manifest, RunnerError, listed


class OneGraph:
    """A graph with its solver steps baked in."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None) -> None:
        self._session = _open(manifest, folder, manifest["graphs"]["policy"], threads)
        self._noise = manifest["noise"]["input"]

    def endpoint(self, fed: Mapping[str, Any], noise: Floats) -> Floats:
        """The chunk (1, H, A) of noise (1, H, D) and the inputs of an observation."""
        chunk: Floats = self._session.run(None, {**fed, self._noise: noise})[0]
        return chunk


class TwoGraphs:
    """The encoding of the observation, and one velocity; the Euler steps are taken here.

    Attributes:
        times: of each step, its start and its signed length.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None, num_steps: int | None) -> None:
        self._encode, self._step = (
            _open(manifest, folder, manifest["graphs"][name], threads) for name in ("encode", "step")
        )
        self._context = [output.name for output in self._encode.get_outputs()]
        self.times = manifest["times"] if num_steps is None else _grid(num_steps, manifest["grid_power"])

    def endpoint(self, fed: Mapping[str, Any], noise: Floats) -> Floats:
        """The chunk (1, H, D) of noise (1, H, D) and the inputs of an observation."""
        context = dict(zip(self._context, self._encode.run(None, fed), strict=True))
        x = noise
        for t, dt in self.times:
            time = np.array([t], dtype=np.float32)
            x = x + np.float32(dt) * self._step.run(None, {**context, "x_t": x, "t": time})[0]
        return x


def open_graphs(
    manifest: Manifest, folder: Path, threads: int | None, num_steps: int | None
) -> OneGraph | TwoGraphs:
    """The graphs of a folder; RunnerError where one cannot be loaded, or takes data from elsewhere."""
    if {"one": False, "two": True}[manifest["graphs"]["kind"]]:
        return TwoGraphs(manifest, folder, threads, num_steps)
    if num_steps is not None:
        raise RunnerError(
            f"num_steps is {num_steps}, but this graph's {manifest['num_steps']} step(s) are baked in; leave it out, "
            "or export with --graphs=two."
        )
    return OneGraph(manifest, folder, threads)


def _open(manifest: Manifest, folder: Path, name: str, threads: int | None) -> ort.InferenceSession:
    path = listed(manifest, folder, name)
    # ONNX Runtime would read whatever file the graph names.
    for other in external_files(path):
        listed(manifest, folder, other)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunnerError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__} ({str(error).strip()[:200]}); install the "
            f"version that it was exported with, {manifest['versions'].get('onnxruntime', 'see manifest.json')}."
        ) from error


def _grid(num_steps: int, power: float) -> list[tuple[float, float]]:
    """The times of a number of Euler steps, `u ** power` for evenly spaced u."""
    times = [*((1.0 - step / num_steps) ** power for step in range(num_steps)), 0.0]
    return [(t, after - t) for t, after in pairwise(times)]
