"""Recipes by name: what they set, and what goes before them."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders import parse_reflow as parse
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.provenance import BESIDE_SETTINGS
from chordflow.training.methods.coupled import EndpointMethodConfig, ReflowMethodConfig

REQUIRED = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=out"]


def settings(*arguments: str) -> ReflowJobConfig:
    return parse([*REQUIRED, *arguments])[0]


@pytest.mark.parametrize(("more", "method", "recorded"), [
    ([], EndpointMethodConfig(), "one_step"),
    (["--method.type=reflow"], ReflowMethodConfig(), None),
    (["--buffer.uses_per_coupling=12"], EndpointMethodConfig(), None),
    (["--buffer.uses_per_coupling=3", "--steps=5"], EndpointMethodConfig(), "one_step"),
])  # fmt: skip
def test_a_recipe_is_under_all_other_options_and_recorded_where_it_is_kept(
    more: list[str], method: Any, recorded: str | None
) -> None:
    config = settings("--recipe=one_step", *more)
    assert (config.method, config.recipe) == (method, recorded)


def test_a_file_holds_settings_of_a_new_run(tmp_path: Path) -> None:
    file = tmp_path / "reflow_config.json"

    def read(*more: str, **written: Any) -> ReflowJobConfig:
        file.write_text(json.dumps(written))
        return settings(f"--config_path={file}", *more)

    # The record of a student.
    beside: dict[str, object] = dict.fromkeys(BESIDE_SETTINGS)
    config = read("--seed=3", **beside, recipe="one_step", steps=7, resume=True)
    assert (config.recipe, config.steps, config.seed, config.resume) == ("one_step", 7, 3, False)
    # A recipe is under them.
    config = read(recipe="one_step", method={"path_share": 0.25})
    assert config.method == EndpointMethodConfig(path_share=0.25)
    # Never replaced is null, also as older releases wrote it.
    assert settings("--buffer.uses_per_coupling=null").buffer.uses_per_coupling is None
    for uses, found in ((0, None), (None, None), (3, 3)):
        assert read(buffer={"uses_per_coupling": uses}).buffer.uses_per_coupling == found


def test_the_defaults_are_the_recipe_for_all_steps_and_the_other_is_for_one() -> None:
    from_recipe = settings("--recipe=all_steps")
    from_recipe.recipe = None
    assert from_recipe == settings()
    assert from_recipe.method.build().step_counts is None
    assert settings("--recipe=one_step").method.build().step_counts == (1,)


def test_a_half_finished_run_with_an_optimizer_that_has_gone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "000001" / "pretrained_model"
    folder.mkdir(parents=True)
    (folder / "train_config.json").write_text("{}")
    record = {"chordflow_version": "0.1.0", "optimizer": {"type": "muon", "lr": 1e-3}}
    (folder / "reflow_config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"optimizer.type=muon: .* soap or adamw"):
        parse(["--resume=true", f"--config_path={folder / 'train_config.json'}"])
