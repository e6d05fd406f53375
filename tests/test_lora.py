"""PEFT adapters as teachers: as `lerobot-train` writes them, merged, and with the actions that stock LeRobot has."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import get_policy_class, make_policy
from safetensors.torch import load_file, save_file

from builders import observations
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.experiments.provenance import weights_sha256
from chordflow.policies import Role, files, load_flow_policy, lora, relocate, resolve_checkpoint, save_student
from chordflow.quiet import quiet_stdout
from coupling_stores import command
from families import CASES
from small_policies import Folders
from small_runs import Break, Capture, changed, contents, gone, options, refused, student_of, weights, written

WEIGHTS = "adapter_model.safetensors"
# LeRobot names parts of its own for three families; for the others the user does.
TARGETS = {
    "multi_task_dit": ["qkv_proj", "output_proj"],
    "eo1": ["action_time_mlp_in", "q_proj"],
    "groot": ["to_q", "proj_out_2"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where merged weights are kept."""
    monkeypatch.setattr(lora, "MERGED", tmp_path / "hub" / "merged")
    return tmp_path / "hub" / "merged"


def build_adapter(base: Path, folder: Path, *, merged: bool = False, **peft: Any) -> Path:
    """An adapter with random weights on the policy in `base`, saved as `lerobot-train` saves it, or merged before."""
    config = PreTrainedConfig.from_pretrained(base)
    config.pretrained_path = base
    torch.manual_seed(1)
    with quiet_stdout():
        policy = get_policy_class(config.type).from_pretrained(base, config=config)
        if config.type in TARGETS:
            peft.setdefault("target_modules", TARGETS[config.type])
        model = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4, **peft})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                # An adapter begins as nothing.
                parameter.add_(0.2 * torch.randn(parameter.shape))
    # LeRobot's `save_checkpoint`: what PEFT leaves out it writes itself.
    (model.merge_and_unload() if merged else model).save_pretrained(folder)
    config.save_pretrained(folder)
    for file in base.glob("policy_p*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def load_stock(folder: Path, dataset_root: Path) -> Any:
    """A checkpoint as LeRobot's own commands load it."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    with quiet_stdout():
        return make_policy(config, ds_meta=LeRobotDatasetMetadata("test/tiny", root=dataset_root))


def actions(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The first actions of a chunk of the stock policy, which draws its noise from torch's generator."""
    policy.eval()
    policy.reset()
    torch.manual_seed(5)
    with torch.no_grad():
        return torch.stack([policy.select_action(dict(batch)) for _ in range(4)])


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the tests' SmolVLA, built once."""
    return build_adapter(checkpoint, tmp_path_factory.mktemp("adapter") / "built")


@pytest.fixture
def adapter(built: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """One that may be broken, and so may its base."""
    base = shutil.copytree(checkpoint, tmp_path / "base")
    folder = Path(shutil.copytree(built, tmp_path / "adapter"))
    changed(ABOUT, base_model_name_or_path=str(base))(folder)
    return folder


@pytest.mark.parametrize(("family", "peft"), [
    *((family, {}) for family in CASES),
    ("smolvla", {"full_training_modules": ["action_out_proj"], "target_modules": ["q_proj", "v_proj"]}),
    ("pi0", {"rank_pattern": {"action_in_proj": 2}, "alpha_pattern": {"action_in_proj": 7}, "lora_alpha": 3}),
    ("smolvla", {"use_dora": True, "use_rslora": True}),
    ("smolvla", {"method_type": "MISS"}),
    # Their output heads share the embedding's tensor.
    ("eo1", {"target_modules": ["lm_head", "q_proj"]}),
    ("groot", {"target_modules": ["q_proj"], "full_training_modules": ["lm_head"]}),
    ("eo1", {"target_modules": ["q_proj"], "full_training_modules": ["embed_tokens"]}),
])  # fmt: skip
def test_a_merged_adapter_has_the_stock_actions(
    family: str, peft: dict[str, Any], family_folder: Folders, dataset_root: Path, tmp_path: Path
) -> None:
    base = family_folder(family)
    folder = build_adapter(base, tmp_path / "adapter", **peft)
    before = contents(folder), contents(base)
    policy = load_flow_policy(folder, device="cpu")
    assert (contents(folder), contents(base)) == before
    stock = load_stock(folder, dataset_root)
    assert type(stock).__name__ == "PeftModel"
    batch = policy.preprocess(observations(2))
    expected, alone = actions(stock, batch), actions(load_flow_policy(base, device="cpu").module, batch)
    assert (expected - alone).abs().max() > 1e-2
    torch.testing.assert_close(actions(policy.module, batch), expected, rtol=0, atol=1e-5)


def test_couplings_of_an_adapter(
    adapter: Path, dataset_root: Path, cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The teacher is the adapter, its file the merged one."""
    assert main(command(adapter, dataset_root, tmp_path / "out")) == 0
    assert capsys.readouterr().out.count("merged into the weights of") == 1
    (merged,) = [place for place in cache.iterdir() if place.is_dir()]
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())["about"]
    assert about["teacher_sha256"] == weights_sha256(merged)


@pytest.mark.slow
def test_a_run_on_an_adapter_goes_on(adapter: Path, dataset_root: Path, cache: Path, tmp_path: Path) -> None:
    """Even where the cache was emptied in between: the same weights are made again."""
    out = tmp_path / "out"
    assert main(options(adapter, dataset_root, out)) == 0
    (merged,) = [place for place in cache.iterdir() if place.is_dir()]
    record = json.loads((student_of(out) / "reflow_config.json").read_text())
    assert record["teacher"]["path"] == str(adapter)
    assert record["teacher_sha256"] == weights_sha256(merged)
    shutil.rmtree(cache)
    config = student_of(out) / "train_config.json"
    assert main(["reflow", "--resume=true", f"--config_path={config}", "--steps=7"]) == 0
    assert os.readlink(out / "checkpoints" / "last") == "000007"


@pytest.mark.parametrize("merged", [True, False])
def test_a_student_of_an_adapter_is_plain(
    merged: bool, checkpoint: Path, dataset_root: Path, cache: Path, tmp_path: Path
) -> None:
    """Also of one merged beforehand, whose config still says `use_peft`: LeRobot would look for an adapter."""
    teacher = build_adapter(checkpoint, tmp_path / "teacher", merged=merged)
    assert json.loads((teacher / "config.json").read_text())["use_peft"]
    teacher = resolve_checkpoint(teacher)
    assert cache.exists() != merged
    policy = load_flow_policy(teacher, device="cpu")
    student = tmp_path / "student"
    save_student(policy, teacher, student, policy.train_roles([Role.ACTION_HEAD]), 1)
    assert not list(student.glob("adapter_*"))
    batch = policy.preprocess(observations(1))
    policy.set_num_steps(1)
    assert torch.equal(actions(load_stock(student, dataset_root), batch), actions(policy.module, batch))


def test_merged_weights_are_made_once_and_anew_where_a_file_has_changed(
    adapter: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = resolve_checkpoint(adapter)
    assert resolve_checkpoint(adapter) == merged
    config = json.loads((merged / "config.json").read_text())
    assert config == {**json.loads((adapter / "config.json").read_text()), "use_peft": False}
    for file in adapter.glob("policy_p*"):
        assert file.read_bytes() == (merged / file.name).read_bytes()
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, adapter / WEIGHTS)
    doubled = resolve_checkpoint(adapter)
    assert doubled != merged
    assert weights_sha256(doubled) != weights_sha256(merged)
    # Killed while merging: nothing half-made is taken for whole.
    save_file(tensors, adapter / WEIGHTS)
    with monkeypatch.context() as patch:
        patch.setattr(lora, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve_checkpoint(adapter)
    assert {place.name for place in cache.iterdir() if place.is_dir()} == {merged.name, doubled.name}
    assert weights_sha256(resolve_checkpoint(adapter)) == weights_sha256(merged)


@pytest.mark.parametrize("how", ["a Hub's", "beside it", "relative to here", "relative to an ancestor"])
def test_where_the_base_is(how: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights_sha256(resolve_checkpoint(adapter))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    name = {"a Hub's": "someone/base", "beside it": str(tmp_path / "base")}.get(how, "base")
    if how == "relative to here":
        (tmp_path / "base").rename(tmp_path / "deep" / "base")
        monkeypatch.chdir(tmp_path / "deep")
    elif how == "a Hub's":
        monkeypatch.setattr(files, "snapshot_download", lambda repo, **_: tmp_path / Path(repo).name)
    else:
        monkeypatch.chdir(tmp_path / "deep")
    changed(ABOUT, base_model_name_or_path=name)(adapter)
    assert weights_sha256(resolve_checkpoint(adapter)) == expected


def test_relocating_an_adapter(adapter: Path, vlm: Path, tmp_path: Path, capsys: Capture) -> None:
    resolve_checkpoint(adapter)
    changed("config.json", vlm_model_name="/moved/tiny-smolvlm")(adapter)
    said = refused(options(adapter, tmp_path, tmp_path / "out"), capsys, tmp_path)
    assert f"run: chordflow relocate {adapter}" in said
    relocate(adapter, vlm)
    assert load_flow_policy(adapter, device="cpu").family == "smolvla"


def base(breaks: Break) -> Break:
    """Breaks the base in place of the adapter."""
    return lambda p: breaks(p.parent / "base")


ABOUT, UNFIT = "adapter_config.json", "PEFT cannot put this adapter on"
BROKEN: dict[str, tuple[Break, str]] = {
    "no adapter weights": (gone(WEIGHTS), f"the file {WEIGHTS} is missing"),
    "base moved": (lambda p: (p.parent / "base").rename(p.parent / "gone"), "base_model_name_or_path="),
    "base not on the Hub": (changed(ABOUT, base_model_name_or_path="some/where"),
        "base_model_name_or_path=some/where in adapter_config.json: there is no such folder, and the Hub"),
    "no base named": (changed(ABOUT, base_model_name_or_path=None), "names no base_model_name_or_path"),
    "no adapter config": (gone(ABOUT), f"the file {ABOUT} is missing"),
    "an adapter as base": (base(lambda p: (p / "model.safetensors").rename(p / ABOUT)),
        "base in adapter_config.json: an adapter is there"),
    "a base's run": (lambda p: changed(ABOUT, base_model_name_or_path=str(p.parent / "run"))(
        shutil.move(p.parent / "base", p.parent / "run" / "pretrained_model") and p), "/run/pretrained_model; write"),
    "base without weights": (base(gone("model.safetensors")), "no model.safetensors is there"),
    "cut adapter": (written(WEIGHTS, b"short"), UNFIT),
    "cut config": (written(ABOUT, "{"), "adapter_config.json is not valid JSON"),
    "other rank": (changed(ABOUT, r=3), UNFIT),
    "a part too few": (weights(lambda t: t.pop(min(t)), WEIGHTS), f"{WEIGHTS} lacks"),
    "a part too many": (changed(ABOUT, target_modules=["action_in_proj"]), f"{WEIGHTS} holds"),
    "not finite": (weights(lambda t: t[min(t)].fill_(torch.nan), WEIGHTS), "peft_type=LORA cannot be merged"),
    "another base": (base(weights(lambda t: t.pop("model.action_out_proj.weight"))), "does not fit config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter(
    case: str, adapter: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    breaks, message = BROKEN[case]
    breaks(adapter)
    said = refused(options(adapter, dataset_root, tmp_path / "out"), capsys, tmp_path / "adapter")
    assert "teacher.path=" in said
    assert message in said
    assert not (tmp_path / "out").exists()
    assert not [place for place in lora.MERGED.glob("*") if place.is_dir()]


def test_a_bias_for_a_layer_that_has_none_cannot_be_merged(checkpoint: Path, tmp_path: Path) -> None:
    folder = build_adapter(checkpoint, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(UserError, match=r"cannot be merged into its base .*lora_bias"):
        load_flow_policy(folder, device="cpu")


def test_where_peft_is_not_installed(
    adapter: Path, dataset_root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refused(options(adapter, dataset_root, tmp_path / "out"), capsys, tmp_path / "adapter")
    assert f"teacher.path={adapter} is a PEFT adapter" in said
    assert "pip install 'chordflow[peft]'" in said
