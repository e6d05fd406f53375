"""Recipes by name: what they set, and what goes before them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import parse_reflow as parse
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.provenance import BESIDE_SETTINGS
from chordflow.experiments.recipes import RECIPES
from chordflow.training.methods import EndpointMethodConfig, ReflowMethodConfig

REQUIRED = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=out"]


def settings(*arguments: str) -> ReflowJobConfig:
    return parse([*REQUIRED, *arguments])[0]


def test_a_recipe_is_under_all_other_options() -> None:
    assert settings("--recipe=one_step").method == EndpointMethodConfig()
    assert settings("--recipe=one_step", "--method.path_share=0.5").method == EndpointMethodConfig(
        path_share=0.5
    )
    assert settings("--recipe=one_step", "--method.type=reflow").method == ReflowMethodConfig()
    assert settings("--recipe=one_step").recipe == "one_step"


def test_a_recipe_that_was_overridden_is_not_recorded() -> None:
    assert settings("--recipe=one_step", "--method.type=reflow").recipe is None
    assert settings("--recipe=one_step", "--buffer.uses_per_coupling=12").recipe is None
    assert settings("--recipe=one_step", "--buffer.uses_per_coupling=3", "--steps=5").recipe == "one_step"


def test_the_record_of_a_student_is_settings_of_a_new_run(tmp_path: Path) -> None:
    file = tmp_path / "reflow_config.json"
    beside: dict[str, object] = dict.fromkeys(BESIDE_SETTINGS)
    file.write_text(json.dumps({**beside, "recipe": "one_step", "steps": 7, "resume": True}))
    config = settings(f"--config_path={file}", "--seed=3")
    assert (config.recipe, config.steps, config.seed, config.resume) == ("one_step", 7, 3, False)


def test_never_replaced_is_null_also_as_older_releases_wrote_it(tmp_path: Path) -> None:
    assert settings("--buffer.uses_per_coupling=null").buffer.uses_per_coupling is None
    file = tmp_path / "reflow_config.json"
    for written, read in ((0, None), (None, None), (3, 3)):
        file.write_text(json.dumps({"buffer": {"uses_per_coupling": written}}))
        assert settings(f"--config_path={file}").buffer.uses_per_coupling == read


def test_a_recipe_is_under_the_settings_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"recipe": "one_step", "method": {"path_share": 0.25}}))
    assert settings(f"--config_path={file}").method == EndpointMethodConfig(path_share=0.25)


def test_the_defaults_are_the_recipe_for_all_steps() -> None:
    from_recipe = settings("--recipe=all_steps")
    from_recipe.recipe = None
    assert from_recipe == settings()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_and_keeps_its_promise(name: str) -> None:
    step_counts = settings(f"--recipe={name}").method.build().step_counts
    assert step_counts == ((1,) if name == "one_step" else None)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"recipe=one_stpe: there is no such recipe; did you mean one_step\?"):
        settings("--recipe=one_stpe")
    with pytest.raises(UserError, match=r"recipe=xyz: .*choose all_steps or one_step\."):
        settings("--recipe=xyz")


def test_a_half_finished_run_with_an_optimizer_that_has_gone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "000001" / "pretrained_model"
    folder.mkdir(parents=True)
    (folder / "train_config.json").write_text("{}")
    record = {"chordflow_version": "0.1.0", "optimizer": {"type": "muon", "lr": 1e-3}}
    (folder / "reflow_config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"optimizer.type=muon: .* soap or adamw, or .* chordflow 0\.1\.0"):
        parse(["--resume=true", f"--config_path={folder / 'train_config.json'}"])
