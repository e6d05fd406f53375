"""What `full_size.py` measured, as a table in README.md.

    python benchmarks/training/full_size_table.py --write

It shows every `full_*.json` in results/; a test holds the document to them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chordflow.results.bench import NAIVE, TrainingBench
from chordflow.results.files import put_between
from chordflow.results.wording import size

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent / "README.md"
MARK = "full size"
HEAD = (
    "policy and device",
    "optimiser",
    "couplings a step",
    "M",
    "R",
    "times naive",
    "by counting",
    "share of the peak: encode, velocity, step",
    "an observation in the buffer",
    "most memory",
)


def main() -> None:
    """Reads the command line; prints, or writes into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write into README.md")
    if parser.parse_args().write:
        put_between(DOCUMENT, MARK, shown())
    else:
        print(shown())


def shown() -> str:
    """What stands between the marks of the document."""
    lines = [HEAD, ("---", "---", *["---:"] * (len(HEAD) - 2))]
    lines += [row(TrainingBench.load(path)) for path in sorted(RESULTS.glob("full_*.json"))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(bench: TrainingBench) -> tuple[str, ...]:
    """The line of one result."""
    naive, buffered = bench.speeds
    roofline = bench.roofline
    assert naive.loop == NAIVE
    assert roofline is not None
    counted = [roofline.flop_per_sample(loop) for loop in bench.loops]
    works = (roofline.encode, roofline.velocity, roofline.train)
    shares = (work.flop_per_s / roofline.peak_flop_per_s for work in works)
    loop = bench.loops[1]
    return (
        f"{bench.teacher.replace(', random weights', '')}; {bench.device}",
        bench.settings["optimizer"],
        str(loop.batch_size),
        str(loop.noises_per_observation),
        str(loop.uses_per_coupling),
        f"{buffered.samples_per_s / naive.samples_per_s:.1f}",
        f"{counted[0] / counted[1]:.1f}",
        ", ".join(f"{100 * share:.0f} %" for share in shares),
        size(roofline.context_bytes + loop.noises_per_observation * roofline.coupling_bytes),
        "-" if buffered.peak_bytes is None else size(buffered.peak_bytes),
    )


if __name__ == "__main__":
    main()
