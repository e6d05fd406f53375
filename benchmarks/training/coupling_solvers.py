"""How exactly each solver makes couplings, by the number of network evaluations that it takes.

    make demo
    python benchmarks/training/coupling_solvers.py --demo=outputs/demo \
        --output=benchmarks/training/results/coupling_solvers.json
    python benchmarks/training/coupling_solvers.py --table

The reference are the endpoints of 1000 Euler steps from the same noises. An error is the action gap to them: the
distance over the robot's dimensions, relative to the spread of the reference.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import chordflow
from chordflow.couplings import CouplingConfig, DatasetConfig, open_split
from chordflow.flow.seeds import generator
from chordflow.policies import Context, FlowPolicy, load_flow_policy
from chordflow.quiet import silence_libraries

FILE = Path(__file__).parent / "results" / "coupling_solvers.json"
REFERENCE = CouplingConfig("euler", 1000, 1.0)
WAYS = [
    CouplingConfig("euler", 10, 1.0),
    CouplingConfig("midpoint", 5, 1.0),
    CouplingConfig("adams_bashforth", 9, 1.0),
    CouplingConfig("adams_bashforth", 9, 1.4),
    CouplingConfig("euler", 17, 1.4),
    CouplingConfig("midpoint", 8, 1.4),
    CouplingConfig("adams_bashforth", 16, 1.0),
    CouplingConfig("adams_bashforth", 16, 1.2),
    CouplingConfig("adams_bashforth", 16, 1.4),
    CouplingConfig("adams_bashforth", 16, 1.7),
    CouplingConfig("midpoint", 10, 1.0),
    CouplingConfig("midpoint", 10, 1.4),
    CouplingConfig("heun", 10, 1.0),
]
BATCH = 64
"""Noises that go through the network together."""


def main() -> None:
    """Reads the command line; measures and saves, or prints the table."""
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--demo", type=Path, default=Path("outputs/demo"), help="folder that `make demo` made"
    )
    parser.add_argument("--observations", type=int, default=64)
    parser.add_argument("--noises", type=int, default=3, help="of each observation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="print the results of --output as markdown")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.output.read_text(encoding="utf-8"))))
        return
    result = measure(options.demo, options.observations, options.noises, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


@torch.no_grad()
def measure(demo: Path, observations: int, noises: int, seed: int) -> dict[str, Any]:
    """The errors of all ways on held-out observations of the demo."""
    began = time.process_time()
    policy = load_flow_policy(demo / "teacher", device="cpu")
    policy.module.requires_grad_(False)
    held_out = open_split(DatasetConfig("chordflow/detour", root=str(demo / "dataset")), policy).held_out
    chosen = torch.randperm(len(held_out), generator=generator(seed, "observations"))[:observations]
    items = next(held_out.batches(chosen.sort().values.tolist(), observations))
    context = policy.encode(policy.preprocess(items))
    noise = policy.sample_noise(len(chosen) * noises, generator(seed, "noises"))
    reference = _solve(policy, context, noise, REFERENCE)
    spread = _distance(policy, reference, reference.mean(dim=0, keepdim=True))
    scale = float(spread.square().mean().sqrt())
    rows = []
    for way in WAYS:
        relative = _distance(policy, _solve(policy, context, noise, way), reference) / scale
        rows.append(
            {
                "solver": way.solver,
                "num_steps": way.num_steps,
                "grid_power": way.grid_power,
                "nfe": way.nfe,
                "rms": float(relative.square().mean().sqrt()),
                "median": float(relative.median()),
                "max": float(relative.max()),
            }
        )
    return {
        "observations": len(chosen),
        "noises": noises,
        "seed": seed,
        "reference": {"solver": REFERENCE.solver, "num_steps": REFERENCE.num_steps},
        "rows": rows,
        "cpu_seconds": round(time.process_time() - began, 1),
        "torch": torch.__version__,
        "chordflow": chordflow.__version__,
    }


def _solve(policy: FlowPolicy, context: Context, noise: Tensor, way: CouplingConfig) -> Tensor:
    """Endpoints (N * K, H, D) of noises (N * K, H, D), K for each of the context's N observations."""
    which = torch.arange(len(noise)) // (len(noise) // context.batch_size)
    parts = zip(which.split(BATCH), noise.split(BATCH), strict=True)
    return torch.cat([way.sampler(policy)(context.index(rows), x) for rows, x in parts])


def _distance(policy: FlowPolicy, chunks: Tensor, others: Tensor) -> Tensor:
    """Norm over what the robot can run, float64 (N * K,)."""
    return (policy.chunk.real(chunks) - policy.chunk.real(others)).double().flatten(1).norm(dim=1)


def table(result: dict[str, Any]) -> str:
    """The results as a table in markdown, fewest evaluations first."""
    head = ("solver", "steps", "grid power", "evaluations", "RMS", "median", "largest")
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for row in sorted(result["rows"], key=lambda row: (row["nfe"], row["rms"])):
        errors = (f"{100 * row[name]:.2f} %" for name in ("rms", "median", "max"))
        lines.append(
            (row["solver"], str(row["num_steps"]), f"{row['grid_power']:g}", str(row["nfe"]), *errors)
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
