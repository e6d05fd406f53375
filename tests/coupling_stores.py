"""Small stores of couplings, and the commands that make them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from chordflow.cli.main import main

SMALL = [
    "--num_observations=24", "--buffer.block_size=4", "--buffer.noises_per_observation=3", "--coupling.num_steps=2",
    "--batch_size=8", "--seed=5", "--num_workers=0",
]  # fmt: skip
Command = Callable[..., list[str]]


def command(teacher: Path, dataset: Path, output: Path, *more: str) -> list[str]:
    """A command line; later options replace earlier ones of the same name."""
    chosen = {}
    for option in [f"--teacher.path={teacher}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset}",
                   f"--output_dir={output}", *SMALL, *more]:  # fmt: skip
        chosen[option.split("=")[0]] = option
    return ["couple", *chosen.values()]


@pytest.fixture(scope="module")
def couple(checkpoint: Path, dataset_root: Path) -> Command:
    """A command line by its output folder and more options."""
    return partial(command, checkpoint, dataset_root)


@pytest.fixture(scope="module")
def stores(couple: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Finished stores, without and with contexts; not to be written to."""
    place = tmp_path_factory.mktemp("stores") / "läuft 你好"
    made = {context: place / f"context={context}" for context in (False, True)}
    for context, store in made.items():
        assert main(couple(store, f"--store_context={str(context).lower()}")) == 0
    return made
