"""Times a policy of full size with random weights: encode, one velocity, and whole chunks at ten steps and at one.

    python benchmarks/latency/run.py --family=smolvla --size=full --device=cuda --dtype=bfloat16 \
        --compile=false --output=benchmarks/latency/results/FILE.json
    python benchmarks/latency/run.py --table

Batch 1, as on a robot. `--table` prints the table of README.md from the results in `results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from random_policies import acting, build, observation

import chordflow
from chordflow.evaluation.latency import WARM_UP, measure_latency
from chordflow.policies import FlowPolicy
from chordflow.results.schema import Latency

RESULTS = Path(__file__).parent / "results"
TEN = 10
"""The steps that both families are saved with by default."""


def main() -> None:
    """Reads the command line; prints and saves what was measured, or prints the table."""
    options = _options()
    if options.table:
        print(table(RESULTS))
        return
    policy = build(options.family, options.size, options.device, options.dtype)
    result = measure(
        policy, compiled=options.compile == "true", repeats=options.repeats, warm_up=options.warm_up
    )
    result = {"family": options.family, "size": options.size, "dtype": options.dtype, **result}
    text = json.dumps(result, indent=2)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")


def measure(policy: FlowPolicy, *, compiled: bool, repeats: int, warm_up: int = WARM_UP) -> dict[str, Any]:
    """What the JSON holds beside the names of family, size and dtype."""
    items = observation(policy)
    compile_s = compile_parts(policy, items) if compiled else None
    # Where one thread of a CPU does the work, its own time is that work; what else runs there is left out.
    own_time = policy.device.type == "cpu" and torch.get_num_threads() == 1
    latency = measure_latency(
        policy,
        items,
        repeats,
        teacher_num_steps=TEN,
        student_num_steps=1,
        chunk_num_steps=(1, TEN),
        warm_up=warm_up,
        clock=time.process_time if own_time else time.perf_counter,
    )
    return {
        "parameters": sum(parameter.numel() for parameter in policy.module.parameters()),
        "parameters_acting": acting(policy.module),
        "compiled": compiled,
        "compile_s": compile_s,
        **_ratios(latency),
        "clock": "the thread's own time" if own_time else "wall",
        "seconds": asdict(latency),
        "environment": environment(policy.device),
    }


def _ratios(latency: Latency) -> dict[str, float]:
    return {
        "encode_over_step": latency.encode_s / latency.step_s,
        # From the parts: the most that fewer steps can give. The measured one is of whole chunks.
        "ceiling": latency.ceiling,
        "measured_speedup": latency.speedup,
    }


@torch.no_grad()
def compile_parts(policy: FlowPolicy, items: dict[str, Any]) -> float:
    """Compiles encode and velocity in place.

    Returns:
        The seconds that the first chunk took with both, which are nearly all compilation.
    """
    # A compilation of an earlier run would make this one look quick.
    torch.compiler.config.force_disable_caches = True
    for name in ("encode", "velocity"):
        setattr(policy, name, torch.compile(getattr(policy, name), dynamic=False))
    batch = policy.preprocess(items)
    noise = policy.sample_noise(1, torch.Generator().manual_seed(0)).to(policy.device)
    start = time.perf_counter()
    policy.velocity(noise, torch.ones(1, device=policy.device), policy.encode(batch))
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def environment(device: torch.device) -> dict[str, Any]:
    """Where it was measured: a time means nothing without it."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "chordflow": chordflow.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def table(folder: Path) -> str:
    """The results of `folder` as a table in markdown.

    On a CPU it shows ratios only: absolute times of a processor that nobody runs a robot on say nothing.
    """
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    head = (
        "policy", "parameters, acting", "device", "dtype", "mode", "runs", "encode / step", "ceiling",
        "ten steps / one, measured", "eager / this, ten steps", "eager / this, one step", "ten steps, ms",
        "one step, ms",
    )  # fmt: skip
    rows = [_row(result, results) for result in sorted(results, key=_order)]
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    where = result["environment"]
    sizes = ("full", "reduced")
    return (
        where["device"] == "cpu", where["device_name"], sizes.index(result["size"]), result["family"],
        result["dtype"], result["compiled"],
    )  # fmt: skip


def _row(result: dict[str, Any], results: list[dict[str, Any]]) -> tuple[str, ...]:
    where = result["environment"]
    on_cpu = where["device"] == "cpu"
    times = [chunk_s(result, steps) for steps in (TEN, 1)]
    gains = ["", ""]
    for other in results:
        if result["compiled"] and not other["compiled"] and _subject(other) == _subject(result):
            gains = [f"{chunk_s(other, n) / chunk_s(result, n):.2f}" for n in (TEN, 1)]
    device = f"CPU, {_threads(where['threads'])}" if on_cpu else where["device_name"]
    return (
        f"{result['family']}, {result['size']}",
        f"{_short(result['parameters'])}, {_short(result['parameters_acting'])}",
        device,
        result["dtype"],
        "compiled" if result["compiled"] else "eager",
        str(result["seconds"]["repeats"]),
        f"{result['encode_over_step']:.1f}",
        f"{result['ceiling']:.2f}",
        f"{result['measured_speedup']:.2f}",
        *gains,
        *("" if on_cpu else f"{1000 * seconds:.1f}" for seconds in times),
    )


def _subject(result: dict[str, Any]) -> tuple[Any, ...]:
    where = result["environment"]
    names = ("device", "device_name", "threads", "torch")
    return tuple(result[name] for name in ("family", "size", "dtype")) + tuple(where[name] for name in names)


def chunk_s(result: dict[str, Any], num_steps: int) -> float:
    """Median seconds of a whole chunk at `num_steps`."""
    (seconds,) = (c["seconds"]["p50"] for c in result["seconds"]["chunks"] if c["num_steps"] == num_steps)
    return float(seconds)


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _short(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.0f} M" if number >= 1e7 else f"{number / 1e6:.1f} M"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=("smolvla", "pi05"), default="smolvla")
    parser.add_argument("--size", choices=("full", "reduced"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--compile", choices=("true", "false"), default="false", help="torch.compile both parts"
    )
    parser.add_argument("--output", type=Path, help="the JSON to write")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each part")
    parser.add_argument("--warm_up", type=int, default=WARM_UP, help="untimed runs before them")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the results in results/ and stop"
    )
    options = parser.parse_args()
    if options.output is None and not options.table:
        parser.error("--output=FILE.json says where the result goes; --table prints the table instead")
    if options.repeats < 1 or options.warm_up < 0:
        parser.error(
            f"--repeats={options.repeats} and --warm_up={options.warm_up}: give 1 or more, and 0 or more"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no CUDA device here; give --device=cpu")
    return options


if __name__ == "__main__":
    main()
