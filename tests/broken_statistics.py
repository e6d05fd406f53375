"""Ways to change a checkpoint's processors on disk, as real ones are found to be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from small_runs import edit_json

NORMALISERS = ("normalizer_processor", "unnormalizer_processor")
BEFORE, AFTER = "policy_preprocessor", "policy_postprocessor"


def edit_steps(folder: Path, pipeline: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change` to every step of `pipeline`: an entry of its JSON file."""
    edit_json(folder / f"{pipeline}.json", lambda content: [change(step) for step in content["steps"]])


def edit_normaliser(folder: Path, pipeline: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change` to the settings of the normalising step of `pipeline`."""
    edit_steps(folder, pipeline, lambda step: step["registry_name"] in NORMALISERS and change(step["config"]))


def edit_statistics(folder: Path, pipeline: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Applies `change` to the statistics of `pipeline`, named as `observation.state.mean`."""
    for file in folder.glob(f"{pipeline}_step_*.safetensors"):
        statistics = load_file(file)
        change(statistics)
        save_file(statistics, file)


def drop(folder: Path, pipeline: str, *beginnings: str) -> None:
    """Takes the statistics away whose names begin so."""
    edit_statistics(
        folder, pipeline, lambda held: [held.pop(key) for key in list(held) if key.startswith(beginnings)]
    )


def add_step(folder: Path, pipeline: str, registry_name: str, **config: Any) -> None:
    """Puts a further step behind those of `pipeline`."""
    step = {"registry_name": registry_name, "config": config}
    edit_json(folder / f"{pipeline}.json", lambda content: content["steps"].append(step))
