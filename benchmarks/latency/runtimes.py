"""Times whole chunks of one policy in PyTorch and as exported folders, at ten steps, two and one, in one run.

    python benchmarks/latency/runtimes.py --policy=smolvla --size=full --output=benchmarks/latency/runtimes/FILE.json
    python benchmarks/latency/runtimes.py --policy=outputs/demo/student/checkpoints/last/pretrained_model --output=...
    python benchmarks/latency/runtimes.py --table

A chunk goes from a raw observation to actions in the robot's units, at batch 1. All ways take turns, round after round,
so that a machine that slows down slows them alike. `--table` prints the table of README.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from random_policies import acting, assets, build
from run import compile_parts, environment

import chordflow
import chordflow_runtime
from chordflow.deploy import parity
from chordflow.deploy.preparation import preparation, random_observations
from chordflow.experiments import export
from chordflow.flow.solvers import time_grid
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.sampling import Sampler
from chordflow.results.statistics import percentiles

FRAMES = 8
RESULTS = Path(__file__).parent / "runtimes"
STEPS = (10, 2, 1)
PARTS = ("encode", "step")
EAGER, HALF, COMPILED = "PyTorch", "PyTorch, bfloat16", "PyTorch, compiled"
# What weights at random lose in a lower precision says nothing; benchmarks/parity has the figures of trained ones.
LOWER = {"backend": "openvino", "max_gap": 1000.0}
EXPORTED: dict[str, dict[str, Any]] = {
    "ONNX Runtime": {"backend": "onnx"},
    "OpenVINO": {"backend": "openvino"},
    "OpenVINO, bfloat16": {**LOWER, "precision": "bfloat16"},
    "OpenVINO, int8": {**LOWER, "precision": "int8"},
    "ONNX Runtime, one graph": {"backend": "onnx", "graphs": "one"},
    "OpenVINO, one graph": {"backend": "openvino", "graphs": "one"},
}
"""Two graphs, of which one pair takes any number of steps, but where it says one: that has its one step baked in."""

WAYS = (EAGER, HALF, COMPILED, *EXPORTED)

Chunk = Callable[[int | str], object]
"""Makes a chunk at a number of steps, or one of its `PARTS`."""


def main() -> None:
    """Reads the command line; measures and saves, or prints the table."""
    options = _options()
    if options.table:
        print(table(RESULTS))
        return
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if options.policy in ("smolvla", "pi05"):
            checkpoint = folder / "checkpoint"
            built = build(options.policy, options.size, "cpu", "float32", checkpoint)
            del built
            around = assets(options.policy, options.size, folder)
        else:
            checkpoint, around = Path(options.policy), nullcontext(folder)
        with around:
            result = measure(checkpoint, folder, options.ways, options.rounds, options.threads)
    result = {"policy": options.name or f"{options.policy}, {options.size}", **result}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(options.output.parent))


def measure(checkpoint: Path, folder: Path, names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """What the JSON holds beside the policy's name: seconds of every way at every number of steps."""
    # In chordflow's commands as well, one thread's work is timed by the process's own clock.
    clock = time.process_time if threads == 1 else time.perf_counter
    policy = load_flow_policy(checkpoint, device="cpu")
    shapes = {key: policy.config.image_features[key].shape for key in policy.image_keys}
    items = random_observations(policy, preparation(policy, shapes), FRAMES)
    item = items[0]
    _write_dataset(policy, items, folder / "dataset")
    noise = policy.sample_noise(1, torch.Generator().manual_seed(0))
    made = {name: {"load_s": 0.0} for name in names}
    chunks: dict[str, Chunk] = {}
    for name in names:
        if name in EXPORTED:
            chunks[name], made[name] = _exported(checkpoint, folder, name, item, noise, threads)
        else:
            chunks[name] = _in_torch(policy, name, item, noise)
    seconds: dict[tuple[str, int | str], list[float]] = {
        (name, n): [] for name in names for n in ((1,) if name.endswith("one graph") else (*STEPS, *PARTS))
    }
    # The first round warms up.
    for number in range(rounds + 1):
        before = ""
        for (name, what), found in seconds.items():
            if name != before:
                # The caches are full of the way before it.
                chunks[name](what)
            before, start = name, clock()
            chunks[name](what)
            if number:
                found.append(clock() - start)
        print(f"round {number} of {rounds}", flush=True)
    return {
        "parameters": sum(value.numel() for value in policy.module.parameters()),
        "parameters_acting": acting(policy.module),
        "rounds": rounds,
        "clock": "the process's own time" if threads == 1 else "wall",
        "rows": [
            {"way": name, "num_steps": n, "p50_s": found.p50, "p99_s": found.p99}
            for (name, n), times in seconds.items()
            for found in [percentiles(times)]
        ],
        "exports": {name: value for name, value in made.items() if name in EXPORTED},
        "environment": environment(policy.device),
    }


def _in_torch(policy: FlowPolicy, name: str, item: dict[str, Any], noise: torch.Tensor) -> Chunk:
    policy = copy.copy(policy)
    if name == HALF:
        policy.module = copy.deepcopy(policy.module)
        # As LeRobot loads its weights: the networks in bfloat16, the layers around them in float32.
        getattr(policy.module.model, "vlm_with_expert", policy.module.model).to(torch.bfloat16)
    items = torch.utils.data.default_collate([item])
    if name == COMPILED:
        compile_parts(policy, items)

    batch, time_one = policy.preprocess(items), torch.ones(1)
    with torch.no_grad():
        encoded = policy.encode(batch)

    @torch.no_grad()
    def chunk(what: int | str) -> object:
        if what == "encode":
            return policy.encode(batch)
        if what == "step":
            return policy.velocity(noise, time_one, encoded)
        context = policy.encode(policy.preprocess(items))
        return policy.to_action(Sampler(policy, int(what))(context, noise))

    return chunk


def _exported(
    checkpoint: Path, folder: Path, name: str, item: dict[str, Any], noise: torch.Tensor, threads: int
) -> tuple[Chunk, dict[str, float]]:
    # The checkpoint's own comparison, on one observation in place of 32: a chunk of full size takes seconds.
    export.OBSERVATIONS = parity.MODE_OBSERVATIONS = 1
    robot, start = folder / name.replace(", ", "_"), time.perf_counter()
    options = {"graphs": "two", "num_steps": 1, **EXPORTED[name]}
    if options.get("precision") == "int8":
        options["dataset"] = {
            "repo_id": "benchmark/noise",
            "root": str(folder / "dataset"),
            "eval_split": 0.5,
        }
    done = chordflow.export(policy=checkpoint, output_dir=robot, **options)
    export_s, start = time.perf_counter() - start, time.perf_counter()
    policy = chordflow_runtime.load(robot, threads=threads)
    load_s = time.perf_counter() - start
    size = sum(file.stat().st_size for file in robot.iterdir())
    raw = {key: np.asarray(value) if torch.is_tensor(value) else value for key, value in item.items()}
    by_steps = {n: time_grid(n) for n in STEPS}
    drawn, graphs, prepared = noise.numpy(), policy._graphs, policy.prepare(raw)
    given: dict[str, Any] = {}
    if options["graphs"] == "two":
        given = {**policy.encode(prepared), "x_t": drawn, "t": np.ones(1, dtype=np.float32)}

    def chunk(what: int | str) -> object:
        if what == "encode":
            return policy.encode(prepared)
        if what == "step":
            return graphs._step(given)
        # One pair of graphs takes any number of steps; loaded for each, large ones would not fit into memory.
        graphs.times = by_steps[int(what)]
        return policy(raw, drawn)

    return chunk, {"export_s": export_s, "load_s": load_s, "bytes": size, **done.manifest["parity"]}


def _write_dataset(policy: FlowPolicy, items: list[dict[str, Any]], root: Path) -> None:
    """Observations as a dataset of episodes of one frame each, for int8's ranges."""
    shown = {key: value for key, value in items[0].items() if key != "task"}
    features = {
        key: {"dtype": "image", "shape": (*value.shape[1:], 3), "names": ["height", "width", "channels"]}
        if value.dim() == 3
        else {"dtype": "float32", "shape": tuple(value.shape), "names": None}
        for key, value in shown.items()
    }
    features["action"] = {"dtype": "float32", "shape": (policy.chunk.action_dim,), "names": None}
    dataset = LeRobotDataset.create("benchmark/noise", fps=10, features=features, root=root, use_videos=False)
    for item in items:
        frame = {key: value.movedim(0, -1).numpy() for key, value in item.items() if key in shown}
        action = np.zeros(policy.chunk.action_dim, dtype=np.float32)
        dataset.add_frame({**frame, "action": action, "task": item["task"]})
        dataset.save_episode()
    dataset.finalize()


def table(folder: Path) -> str:
    """The results of a folder as tables in markdown, in ratios."""
    return "\n\n".join(_table(json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json")))


def _table(result: dict[str, Any]) -> str:
    p50 = {(row["way"], row["num_steps"]): row["p50_s"] for row in result["rows"]}
    p99 = {(row["way"], row["num_steps"]): row["p99_s"] for row in result["rows"]}
    ways = [way for way in WAYS if (way, 1) in p50]
    where = result["environment"]
    head = (
        "how", "PyTorch / this, ten steps", "two", "one", "PyTorch at ten / this at one",
        "bfloat16 at ten / this at one", "ten / one", "encode / step", "p99 / p50 at one",
    )  # fmt: skip
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for way in ways:
        pairs = [*(((EAGER, n), (way, n)) for n in STEPS), *(((one, 10), (way, 1)) for one in (EAGER, HALF))]
        pairs += [((way, 10), (way, 1)), ((way, "encode"), (way, "step"))]
        cells = [f"{p50[a] / p50[b]:.2f}" if a in p50 and b in p50 else "" for a, b in pairs]
        lines.append((way, *cells, f"{p99[way, 1] / p50[way, 1]:.2f}"))
    said = (
        f"**{result['policy']}** ({result['parameters'] / 1e6:.3g} M parameters), {where['device_name']}, "
        f"{where['threads']} thread{'s' * (where['threads'] > 1)}, {result['rounds']} rounds:\n\n"
    )
    return said + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--policy", default="smolvla", help="smolvla or pi05, with random weights, or a checkpoint"
    )
    parser.add_argument("--size", choices=("full", "reduced"), default="full", help="of smolvla and pi05")
    parser.add_argument("--name", help="what the table calls the policy")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="by default all")
    parser.add_argument("--rounds", type=int, default=30, help="timed chunks of each way and number of steps")
    parser.add_argument(
        "--threads", type=int, default=1, help="1 is timed by its own clock, which others do not disturb"
    )
    parser.add_argument("--output", type=Path, help="the JSON to write")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the results in runtimes/ and stop"
    )
    options = parser.parse_args()
    if options.output is None and not options.table:
        parser.error("--output=FILE.json says where the result goes; --table prints the table instead")
    if min(options.rounds, options.threads) < 1:
        parser.error(f"--rounds={options.rounds} and --threads={options.threads}: give 1 or more")
    return options


if __name__ == "__main__":
    main()
