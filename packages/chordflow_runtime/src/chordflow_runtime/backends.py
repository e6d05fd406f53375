"""A graph of a folder in what runs it, ONNX Runtime or OpenVINO; only the one that the folder asks for is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from chordflow_runtime.external_data import external_files
from chordflow_runtime.images import Floats
from chordflow_runtime.manifest import Manifest, RunnerError, listed

Graph = Callable[[Mapping[str, Any]], dict[str, Floats]]
"""From inputs to outputs, both by name."""

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor has."""


def open_graph(manifest: Manifest, folder: Path, name: str, threads: int | None) -> Graph:
    """Loads a graph; RunnerError where it takes data from elsewhere, or what runs it is absent."""
    path = listed(manifest, folder, name)
    package, opened = {"onnx": ("onnxruntime", _onnx), "openvino": ("openvino", _openvino)}[
        manifest.get("backend", "onnx")
    ]
    engine = import_engine(package)
    try:
        return opened(engine, manifest, path, threads)
    except RunnerError:
        raise
    except Exception as error:
        raise RunnerError(
            f"{path} cannot be loaded by {package} {engine.__version__} ({str(error).strip()[:200]}); install the "
            f"version that it was exported with, {manifest['versions'].get(package, 'see manifest.json')}."
        ) from error


def has_bfloat16() -> bool:
    """Whether the processor has arithmetic in bfloat16."""
    if CPU_INFO.is_file():
        has = CPU_INFO.read_text(encoding="utf-8").split()
    else:
        has = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # The last two are of Arm, and OpenVINO's.
    return not {"avx512_bf16", "amx_bf16", "bf16", "BF16"}.isdisjoint(has)


def require_bfloat16() -> None:
    """Raises RunnerError where the processor has no arithmetic in bfloat16: OpenVINO would imitate it, slowly."""
    if not has_bfloat16():
        raise RunnerError(
            "this processor has no arithmetic in bfloat16 (avx512_bf16 or amx_bf16); export with --precision=float32."
        )


def import_engine(package: str) -> Any:
    """onnxruntime or openvino, neither of which then reports to its makers; RunnerError where it is absent."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    quiet: dict[str, Any] = sys.modules
    quiet.setdefault("openvino_telemetry", None)
    try:
        return import_module(package)
    except ImportError as error:
        raise RunnerError(
            f"{package} cannot be imported ({error}); install it with: pip install {package}"
        ) from error


@cache
def openvino_core() -> Any:
    """OpenVINO's one core in this process.

    A core sets a signal stack for the thread, and puts back what it found when it goes. Of two, the later one can put
    back the stack of the earlier, which is no longer there: the next signal then ends the process.
    """
    return import_engine("openvino").Core()


def _onnx(engine: Any, manifest: Manifest, path: Path, threads: int | None) -> Graph:
    # ONNX Runtime would read whatever file the graph names.
    for other in external_files(path):
        listed(manifest, path.parent, other)
    options = engine.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda fed: dict(zip(names, session.run(None, dict(fed)), strict=True))


def _openvino(engine: Any, manifest: Manifest, path: Path, threads: int | None) -> Graph:
    weights = listed(manifest, path.parent, path.with_suffix(".bin").name)
    with path.open("rb") as file:
        # By its content OpenVINO would also read other formats, some of which name further files.
        if file.read(5) != b"<?xml":
            raise RunnerError(f"{path} is no OpenVINO graph; export the policy again.")
    precision = manifest["precision"]
    if precision == "bfloat16":
        require_bfloat16()
    lower = precision == "bfloat16" or (precision == "int8" and has_bfloat16())
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if lower else "f32"}
    # Where weights are int8 alone OpenVINO would otherwise round activations to int8 as well.
    options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino_core()
    compiled = core.compile_model(core.read_model(path, weights), "CPU", options)

    def run(fed: Mapping[str, Any]) -> dict[str, Floats]:
        found = compiled(dict(fed))
        return {name: found[output] for output in compiled.outputs for name in output.names}

    return run
