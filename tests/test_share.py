"""What a run leaves goes to the Hub with its card, and stays here where that fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image

from chordflow import api, stopping
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig, SourceConfig
from chordflow.experiments.settings import reflow_settings
from chordflow.experiments.share import HubConfig, licence, push
from chordflow.options import build
from chordflow.results.schema import Results
from chordflow.training.loop import read_metrics
from hub_server import Hub
from hub_server import hub as hub
from small_runs import Capture, contents, edit_json, options, resume, student_of

CARD = "---\nlicense: other\nlicense_name: ours\nlicense_link: https://example.invalid\n---\n# Teacher\n"


def command_in(said: str) -> list[str]:
    """The command that a sentence ends with."""
    found = re.search(r"upload it with: (.*)", said)
    assert found is not None, said
    return shlex.split(found[1])


def test_an_upload_that_breaks_is_finished_by_the_command_that_is_printed(
    hub: Hub, whole_run: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, teacher = tmp_path / "läuft 1", tmp_path / "teacher"
    shutil.copytree(whole_run, run, symlinks=True)
    shutil.copytree(checkpoint, teacher)
    (teacher / "README.md").write_text(CARD)
    hub.drops = "/commit/main"
    to = ["--policy.push_to_hub=true", "--policy.repo_id=me/fast", "--policy.private=true"]
    assert main(resume(run, 6, f"--teacher.path={teacher}", *to)) == 0
    said = capsys.readouterr().out
    assert "Hub:     not uploaded (RemoteProtocolError" in said
    assert f"everything is in {student_of(run).resolve()}" in said
    assert (len(hub.large), hub.files) == (3, {})
    hf, *arguments = command_in(said)
    assert hf == "hf"
    subprocess.run(
        [Path(sys.executable).with_name(hf), *arguments],
        env={**os.environ, **hub.environment},
        check=True,
        capture_output=True,
    )
    # What had arrived is not sent again.
    assert len(hub.large) == 3
    assert hub.files == contents(student_of(run))
    assert hub.repos == {"me/fast": "private"}
    saved = json.loads(hub.files["config.json"])
    assert (saved["push_to_hub"], saved["repo_id"]) == (False, None)
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.license_name) == ("other", "ours")
    (measured,) = card.data.eval_results
    gaps = json.loads((run / "results.json").read_text())["gaps"]
    (gap,) = (g for g in gaps if (g["policy"], g["num_steps"], g["reference"]) == ("student", 1, "deployed"))
    assert (measured.metric_type, measured.metric_value) == ("action_gap", pytest.approx(100 * gap["rms"]))
    assert "# fast\n" in card.text
    assert "lerobot-eval --policy.path=me/fast" in card.text


@pytest.mark.parametrize(
    ("why", "message"),
    [("no token", "HTTPStatusError: Client error '401"), ("no Hub", "Connection refused"), ("signal", "")],
)
def test_where_the_hub_cannot_be_used_everything_stays_here_and_is_uploaded_later(
    why: str, message: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise stopping.Stopped(signal.SIGINT)

    (tmp_path / "config.json").write_text('{"license": "mit"}')
    monkeypatch.setattr("chordflow.experiments.share.find_checkpoint", lambda path, _: Path(path))
    if why == "no token":
        monkeypatch.setenv("HF_TOKEN", "another")
    elif why == "no Hub":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(HfApi, "upload_folder", stop)
    arguments = HubConfig(True, "me/it"), tmp_path, lambda *given: str(given), SourceConfig(str(tmp_path))
    if why == "signal":
        with pytest.raises(stopping.Stopped) as caught:
            push(*arguments)
        said = caught.value.__notes__[0]
    else:
        push(*arguments)
        said = capsys.readouterr().out
    assert message in said
    login = ["hf", "auth", "login", "&&"] if why == "no token" else []
    assert command_in(said) == [*login, "hf", "upload", "me/it", str(tmp_path), "."]
    assert (tmp_path / "README.md").read_text() == str(("me/it", {"license": "mit"}))
    assert not hub.files


def test_a_licence_is_that_of_the_card_or_the_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(checkpoint, folder)
    source = SourceConfig(str(folder))
    assert licence(source) == {}
    edit_json(folder / "config.json", lambda content: content.update(license="mit"))
    for card in ("no front matter", "---\nlicense: [\n---\n"):
        (folder / "README.md").write_text(card)
        assert licence(source) == {"license": "mit"}
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert licence(source) == {"license": "apache-2.0"}


def test_the_options_of_the_policy_are_the_teachers_but_for_those_of_the_hub(tmp_path: Path) -> None:
    given = {
        "policy": {"path": "t", "push_to_hub": True, "repo_id": "me/it"},
        "dataset": "a/b",
        "output_dir": "o",
    }
    config, _ = reflow_settings(given)
    assert (config.teacher.path, config.policy) == ("t", HubConfig(True, "me/it"))
    # The record of a student is no leave to replace it on the Hub.
    record = tmp_path / "reflow_config.json"
    settings = {"teacher": {"path": "t"}, "dataset": {"repo_id": "a/b"}, "policy": {**given["policy"]}}
    del settings["policy"]["path"]
    record.write_text(json.dumps({**settings, "output_dir": "o", "chordflow_version": "0.1.0"}))
    assert reflow_settings({"config_path": str(record)})[0].policy == HubConfig()


@pytest.mark.parametrize(("given", "message"), [
    ({"push_to_hub": "true"}, "policy.push_to_hub=true needs policy.repo_id=USER/NAME, which is missing"),
    ({"push_to_hub": "true", "repo_id": "it"}, "needs policy.repo_id=USER/NAME, which is it"),
    ({"push_to_hub": "true", "repo_id": "me/a--b"}, "USER/NAME, which is me/a--b"),
    ({"repo_id": "me/it"}, "policy.repo_id=me/it: give --policy.push_to_hub=true too, or null"),
])  # fmt: skip
def test_what_is_missing_is_refused_before_any_work(given: dict[str, str], message: str) -> None:
    base = {"teacher": {"path": "t"}, "dataset": {"repo_id": "a/b"}, "output_dir": "o"}
    with pytest.raises(UserError, match=re.escape(message)):
        build(ReflowJobConfig, {f"policy.{name}": value for name, value in given.items()}, base)


def told(run: Path) -> dict[str, list[float]]:
    """What the newest run on Weights & Biases in a folder was told, by name; for pictures their number."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), {}
    store.open_for_scan(str(next((run / "wandb" / "latest-run").glob("run-*.wandb"))))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            value = json.loads(item.value_json)
            found.setdefault(item.key or "/".join(item.nested_key), []).append(value)
    return found


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_has_loss_rate_gaps_and_pictures_of_one_run_also_when_it_is_resumed(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def draw(results: Results, folder: Path, remedy: str) -> tuple[Path, ...]:
        (folder / "figures").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / "figures" / "picture.png")
        return (folder / "report.html",)

    monkeypatch.setattr(api, "_illustrate", draw)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    run = tmp_path / "out"
    shown = ["--wandb.enable=true", "--wandb.mode=offline", "--wandb.project=reflows"]
    more = ["--steps=2", "--log_freq=1", "--measure.num_steps=[1]"]
    assert main(options(checkpoint, dataset_root, run, *more, *shown)) == 0
    assert f"W&B:     {run / 'wandb'}" in capsys.readouterr().out
    first, id_of = told(run), run / "wandb" / "latest-run"
    began = next(id_of.glob("run-*.wandb")).name
    assert main(resume(run, 2, "--steps=3")) == 0
    lines = read_metrics(run / "metrics.jsonl")
    for shown_now, logged in ((first, lines[:2]), (told(run), lines[2:])):
        for name in ("loss", "lr"):
            assert shown_now[f"train/{name}"] == [line[name] for line in logged]
        assert shown_now["eval/picture/_type"] == ["image-file"]
    assert next(id_of.glob("run-*.wandb")).name == began
    gap = Results.load(run / "results.json").gap("student", 1, "deployed")
    assert gap is not None
    assert told(run)["eval/gap/student/1/deployed"] == [gap.rms]
    # Nothing of it is in the student's record but what the user gave.
    assert json.loads((student_of(run) / "reflow_config.json").read_text())["wandb"]["run_id"] is None
