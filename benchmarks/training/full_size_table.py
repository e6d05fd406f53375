"""What `full_size.py` measured, as a table in README.md.

    python benchmarks/training/full_size_table.py --write

It shows every `full_*.json` in results/; a test holds the document to them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from loops import NAIVE
from roofline import flop_per_sample, shares_of_peak

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
    paths = sorted(RESULTS.glob("full_*.json"))
    lines += [row(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(bench: dict[str, Any]) -> tuple[str, ...]:
    """The line of one result."""
    naive, buffered = bench["speeds"]
    roofline, loop = bench["roofline"], bench["loops"][1]
    assert naive["loop"] == NAIVE
    counted = [flop_per_sample(roofline, loop) for loop in bench["loops"]]
    noises = loop["noises_per_observation"]
    return (
        f"{bench['teacher'].replace(', random weights', '')}; {bench['device']}",
        bench["settings"]["optimizer"],
        str(loop["batch_size"]),
        str(noises),
        str(loop["uses_per_coupling"]),
        f"{buffered['samples'] / buffered['seconds'] / (naive['samples'] / naive['seconds']):.1f}",
        f"{counted[0] / counted[1]:.1f}",
        shares_of_peak(roofline),
        size(roofline["context_bytes"] + noises * roofline["coupling_bytes"]),
        "-" if buffered["peak_bytes"] is None else size(buffered["peak_bytes"]),
    )


if __name__ == "__main__":
    main()
