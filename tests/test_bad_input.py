"""Checkpoints and options that cannot be used: one sentence, exit code 2, nothing on disk changed."""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file

from broken_statistics import BEFORE, edit_steps
from builders import build_checkpoint
from chordflow.cli import jobs
from chordflow.cli.main import main
from chordflow.policies import load_flow_policy
from chordflow.quiet import limit_waiting
from small_runs import Break, Capture, Refuse, changed, edit_json, gone, half, refused, weights, written
from small_runs import refuse as refuse


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be broken."""
    return Path(shutil.copytree(checkpoint, tmp_path / "teacher"))


def keys(rename: Callable[[str], str]) -> Break:
    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[rename(key)] = tensors.pop(key)

    return weights(renamed)


OUT_PROJECTION = "model.action_out_proj.weight"
CONFIG, PRE, WEIGHTS = "config.json", f"{BEFORE}.json", "model.safetensors"
UNFIT, UNREAD = r"does not fit config\.json", r"config\.json is not a config that LeRobot 0\.6\.1 can read"
PROCESSORS, MOVED = "cannot load the processors", "does not exist; run: chordflow relocate"
MOVED_TOKENIZER = {"tokenizer_name": "/moved/vlm"}

BROKEN_CHECKPOINTS: dict[str, tuple[Break, str]] = {
    "no preprocessor": (gone(PRE), r"policy_preprocessor\.json is missing.*migrate_policy_normalization"),
    "no statistics of actions": (gone("policy_postprocessor_*.safetensors"), f"{PROCESSORS}.*check that {PRE}"),
    "preprocessor not JSON": (half(PRE), r"policy_preprocessor\.json is not valid JSON"),
    "a step nobody knows": (
        lambda p: edit_json(p / PRE, lambda c: c["steps"][0].update(registry_name="nobody_knows_this")),
        f"{PROCESSORS}.*nobody_knows_this"),
    "steps are no list": (changed(PRE, steps="none"), PROCESSORS),
    "cut weights": (half(WEIGHTS), r"model\.safetensors is cut or broken"),
    "weights without tensors": (lambda p: save_file({}, p / WEIGHTS), "holds no tensors"),
    "weights of wrong shapes": (weights(lambda t: t.update({OUT_PROJECTION: torch.zeros(3, 3)})),
        rf"{UNFIT}.*{OUT_PROJECTION}"),
    "a missing key": (weights(lambda t: t.pop(OUT_PROJECTION)), rf"{UNFIT}.*{OUT_PROJECTION}"),
    "weights that are not finite": (weights(lambda t: t[OUT_PROJECTION].fill_(float("nan"))),
        r"end in NaN or infinite actions.*model\.safetensors"),
    "config not text": (written(CONFIG, b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
    "config is a list": (written(CONFIG, "[]"), r"config\.json is not a JSON object"),
    "config without a type": (lambda p: edit_json(p / CONFIG, lambda c: c.pop("type")),
        r"config\.json names no policy type"),
    "a type nobody knows": (changed(CONFIG, type="dreamer9"),
        r"'dreamer9', which LeRobot 0\.6\.1 does not know: it is of an older or newer LeRobot.*smolvla"),
    "a policy that is no flow": (changed(CONFIG, type="act"), "'act', which cannot be reflowed.*smolvla"),
    "a field of a newer LeRobot": (changed(CONFIG, invented_in_2027=True),
        r"fields that LeRobot 0\.6\.1 does not know \(invented_in_2027\): it was saved by an older or newer LeRobot"),
    "a model of transformers'": (written(CONFIG, '{"model_type": "smolvlm"}'),
        r"config\.json names no policy type; .*transformers.* \(model_type=smolvlm\): give a policy that LeRobot"),
    "keys of a compiled policy under DDP": (keys(lambda key: f"module._orig_mod.{key}"),
        r"keys of a wrapped policy: without 'module\._orig_mod\.'"),
    "keys of a compiled part": (keys(lambda key: key.replace("lm_expert.", "lm_expert._orig_mod.")),
        r"keys of a wrapped policy: without '_orig_mod\.' in 'model\..*lm_expert\._orig_mod\."),
    "keys of another policy": (keys(lambda key: f"{key}.more"),
        rf"{UNFIT}: it holds 'model\..*\.more' and \d+ more, which this policy does not have"),
    "a value of the wrong kind": (changed(CONFIG, chunk_size="many"), rf"{UNREAD}.*chunk_size"),
    "null for what needs a value": (changed(CONFIG, normalization_mapping=None),
        r"config\.json has null for normalization_mapping; restore"),
    "null for a size": (changed(CONFIG, max_state_dim=None), r"config\.json has null for max_state_dim; restore"),
    "a language model that has moved": (changed(CONFIG, vlm_model_name="/moved/vlm"),
        rf"vlm_model_name=/moved/vlm in config\.json {MOVED}"),
    "a tokenizer that has moved": (
        lambda p: edit_steps(p, BEFORE, lambda s: "tokenizer" in str(s) and s["config"].update(MOVED_TOKENIZER)),
        rf"tokenizer_name=/moved/vlm in policy_preprocessor\.json {MOVED}"),
    "a language model on the Hub": (changed(CONFIG, vlm_model_name="nobody/has-this-vlm"),
        "vlm_model_name=nobody/has-this-vlm in config.json is neither in the local Hub cache nor on a Hub"),
    "a student of one step": (written("reflow_config.json", '{"step_counts": [1]}'),
        "it is a student that was trained for one step"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_a_broken_checkpoint(case: str, copy: Path, refuse: Refuse) -> None:
    breaks, message = BROKEN_CHECKPOINTS[case]
    breaks(copy)
    said = refuse(teacher=copy)
    assert re.search(message, said), said
    if "NaN" not in said:
        assert f"teacher.path={copy}" in said


def test_a_language_model_that_cannot_be_read(vlm: Path, tmp_path: Path, refuse: Refuse) -> None:
    broken = Path(shutil.copytree(vlm, tmp_path / "vlm"))
    teacher = build_checkpoint(tmp_path / "teacher", broken)
    whole = (broken / "config.json").read_text()
    for content in (whole[: len(whole) // 2], json.dumps({"model_type": "bert"})):
        (broken / "config.json").write_text(content)
        assert f"teacher.path={teacher}" in refuse(teacher=teacher)


def test_no_checkpoint_at_all(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "there is no such folder"),
        (tmp_path / "empty", "config.json is missing"),
        ("nobody/nothing", "no reachable repository"),
        ("a/b/c", "there is no such folder"),
    ):
        said = refuse(teacher=path)
        assert f"teacher.path={path}" in said
        assert message in said


@pytest.mark.parametrize(("more", "message"), [
    ("--batch_size=1000", "batch_size=1000 is larger than the buffer's 32 couplings"),
    ("--dataset.root=null --dataset.repo_id=nobody/nothing", "nobody/nothing: no local dataset of that name"),
    ("--dataset.episodes=[0,99]", "from 0 to 5"),
    ("--dataset.episodes=[0,1,1]", "each once"),
    ("--tolerance_s=nan", "tolerance_s=nan: give a number above 0"),
    ("--device=cuda:99", "device=cuda:99 is not available here"),
    ("--device=toaster", "device=toaster is not available here"),
    ("--resume=perhaps", "resume=perhaps: give true | false"),
    ("--resume=yes", "resume=true needs --config_path"),
    ("--config_path=/absent.json", "config_path=/absent.json cannot be read"),
])  # fmt: skip
def test_options_that_cannot_be_used(more: str, message: str, refuse: Refuse) -> None:
    assert message in refuse(*more.split())


def test_a_config_file_that_is_none_of_ours(tmp_path: Path, refuse: Refuse) -> None:
    for name, content, message in (
        ("stock.json", json.dumps({"dataset": {"repo_id": "a/b"}, "policy": {"type": "smolvla"}}), "policy"),
        ("list.json", "[1, 2]", "holds no settings"),
        ("broken.json", '{"steps": ', "neither JSON nor YAML"),
        ("wrong.yaml", "tolerance_s: [a, b]", "tolerance_s="),
    ):
        (tmp_path / name).write_text(content)
        assert message in refuse(f"--config_path={tmp_path / name}")


GIVEN = ["reflow", "--teacher.path=x", "--dataset.repo_id=a/b", "--output_dir=absent"]


def refused_allocation(count: int) -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(count)
    return caught.value


def test_what_the_machine_refuses_anywhere_is_one_line(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_with(error: BaseException) -> None:
        def run(arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(jobs, "reflow", run)

    for error, message in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"), "/full/file: No space left on device; make"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "out of memory (CUDA out of memory.)"),
        (MemoryError(), "out of memory; lower --batch_size"),
        (refused_allocation(1 << 50), "you tried to allocate 4503599627370496 bytes."),
        (refused_allocation(1 << 62), "out of memory (Storage size calculation overflowed"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), "out of memory (MPS backend"),
        (RuntimeError("DataLoader worker (pid 9) exited"), "lower --num_workers"),
    ):  # fmt: skip
        fail_with(error)
        assert message in refused(GIVEN, capsys, tmp_path)
    # A fault of chordflow's own is not the user's: it keeps its traceback.
    for fault in (RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "No such file", "/x")):
        fail_with(fault)
        with pytest.raises(type(fault)):
            main(GIVEN)


def test_relocating_what_cannot_be(checkpoint: Path, vlm: Path, tmp_path: Path, capsys: Capture) -> None:
    moved = Path(shutil.copytree(checkpoint, tmp_path / "run" / "a"))
    changed("config.json", vlm_model_name="/moved/nowhere")(moved)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([], "the checkpoint's folder is missing"),
        ([str(tmp_path / "absent")], "there is no such folder"),
        ([str(tmp_path / "empty")], "no checkpoint (config.json with policy_preprocessor.json)"),
        ([str(moved), f"--vlm.path={tmp_path / 'empty'}"], "vlm.path="),
        ([str(moved), "--vlm=x"], "--vlm is not an option"),
        ([str(moved), "more"], "'more' is not an option"),
    ):
        assert message in refused(["relocate", *arguments], capsys, tmp_path)
    # One broken checkpoint among several: none is rewritten.
    another = Path(shutil.copytree(moved, tmp_path / "run" / "b"))
    (another / "train_config.json").write_text('{"policy": ')
    relocate = ["relocate", str(tmp_path / "run"), f"--vlm.path={vlm}"]
    assert "train_config.json is not valid JSON" in refused(relocate, capsys, tmp_path)
    (another / "train_config.json").write_text('{"policy": {"vlm_model_name": "/moved/nowhere"}}')
    with pytest.MonkeyPatch.context() as patch:
        read_only = OSError(errno.EROFS, "Read-only file system")
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(read_only))
        assert "cannot be written (Read-only file system)" in refused(relocate, capsys, tmp_path)
    assert main(relocate) == 0
    assert json.loads((another / "train_config.json").read_text())["policy"]["vlm_model_name"] == str(vlm)
    assert load_flow_policy(moved).family == load_flow_policy(another).family == "smolvla"
    capsys.readouterr()
    assert main(relocate) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("silent", [False, True])
def test_without_a_network_an_unknown_name_is_told_of(
    silent: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind some firewalls a server takes calls and never answers."""
    monkeypatch.setattr("chordflow.quiet.limit_waiting", partial(limit_waiting, 0.2))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    name = "teacher.path=nobody-at-all/no-such-policy"
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1] if silent else 9}")
        given = ["reflow", "--dataset.repo_id=a/b", f"--{name}", f"--output_dir={tmp_path / 'out'}"]
        said = refused(given, capsys, tmp_path)
    assert f"{name}: there is no such folder, and the Hub has no" in said
