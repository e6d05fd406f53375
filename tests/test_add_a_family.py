"""docs/add-a-family.md, followed to the letter: its files, its commands, and what goes wrong on the way."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders import build_dataset
from chordflow.errors import UserError
from chordflow.policies.registry import adapter_for, supported_families
from chordflow.results.schema import Results

DOCUMENT = Path(__file__).parents[1] / "docs" / "add-a-family.md"
BLOCK = re.compile(
    r"^(?:\*\*`(?P<path>[^`\n]+)`\*\*\n\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)

# What a run of seconds needs besides the document's own options; nothing here changes what is done.
SMALL = {
    "lerobot-train": "--dataset.root=DATASET --steps=4 --batch_size=8 --num_workers=0 --policy.device=cpu "
    "--wandb.enable=false --log_freq=4 --policy.hidden_dim=16",
    "chordflow diagnose": "--dataset.root=DATASET --device=cpu --measure.num_observations=3 "
    "--measure.converged_noises=1 --measure.latency_repeats=2",
    "chordflow reflow": "--dataset.root=DATASET --device=cpu --steps=4 --save_freq=0 --log_freq=2 --batch_size=8 "
    "--optimizer.lr=1e-3 --num_workers=0 --buffer.num_observations=8 --buffer.noises_per_observation=2 "
    "--buffer.block_size=4 --buffer.uses_per_coupling=1 --coupling.num_steps=10 --measure.num_observations=3 "
    "--measure.latency_repeats=2 --measure.converged_noises=1 --measure.num_steps=[1,2]",
}

# Stock LeRobot on the student, where chordflow cannot be imported.
STOCK = """
import sys
sys.modules["chordflow"] = None
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()
path = "student/checkpoints/last/pretrained_model"
config = PreTrainedConfig.from_pretrained(path)
assert (config.type, config.integration_steps) == ("tinyflow", 1), config
policy = get_policy_class(config.type).from_pretrained(path, strict=True)
before, after = make_pre_post_processors(config, path)
batch = before({"observation.state": torch.tensor([0.1, -0.2, 0.3])})
noise = torch.randn(1, config.chunk_size, config.max_action_dim)
with torch.no_grad():
    v = policy.velocity(noise, torch.zeros(1), policy.encoder(batch["observation.state"]))
actions = [policy.select_action(batch, noise=noise) for _ in range(config.n_action_steps)]
torch.testing.assert_close(torch.stack(actions, 1), (noise + v)[:, : config.n_action_steps, :2])
assert after(actions[0]).shape == (1, 2)
assert sys.modules["chordflow"] is None and not any(name.startswith("chordflow.") for name in sys.modules)
"""

# Starts each command in a process of its own, as a shell does. They are forked from one that has LeRobot loaded,
# which takes longer than all the commands together, and has neither chordflow nor the plugin.
SHELL = """
import importlib.metadata, json, os, sys, traceback
import lerobot.scripts.lerobot_train

def run(command):
    program, *sys.argv[1:] = command
    if program == "python":
        sys.argv[:] = ["-c"]
        return exec(command[2], {"__name__": "__main__"})
    sys.argv[0] = program
    (script,) = {s.value: s for s in importlib.metadata.entry_points(group="console_scripts", name=program)}.values()
    return script.load()()

for command in json.loads(sys.argv[1]):
    assert not any(name.startswith(("chordflow", "lerobot_policy_")) for name in sys.modules)
    if not (child := os.fork()):
        code = 1
        try:
            code = run(command) or 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"exit code {status}: {' '.join(command)}")
"""


def blocks() -> list[tuple[str | None, str, str]]:
    """Path (None where it is no file), language and text of every block of code."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = [(m["path"], m["language"], m["text"]) for m in BLOCK.finditer(text)]
    assert text.count("\n```") == 2 * len(found), "a block of code was not understood"
    return found


def commands() -> list[list[str]]:
    """The command lines of the document, in its order."""
    lines = [line for path, _, text in blocks() if path is None for line in text.splitlines()]
    assert all(language == "bash" for path, language, _ in blocks() if path is None), "a file without a name"
    return [shlex.split(line) for line in lines]


def install(source: Path, target: Path) -> None:
    """What `pip install` does, without a network and into a folder of its own."""
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    pip = [uv, "pip", "install", "--offline", "--python", sys.executable] if uv else [
        sys.executable, "-m", "pip", "install", "--no-index", "--disable-pip-version-check"]  # fmt: skip
    options = ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def shell(work: Path, site: Path, lines: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """Runs command lines in `work`, where what is in `site` is installed."""
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SHELL, json.dumps(lines)]
    return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of someone who has written the document's files and run its commands."""
    work = tmp_path_factory.mktemp("walk")
    for path, _, text in blocks():
        if path is not None:
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text, encoding="utf-8")
    dataset = build_dataset(tmp_path_factory.mktemp("data") / "tiny")
    first, *others = commands()
    assert first[:2] == ["pip", "install"]
    install(work / first[2], work / "site")
    lines = []
    for line in others:
        line = [part.replace("USER/DATASET", "test/tiny") for part in line]
        for start, more in SMALL.items():
            if " ".join(line).startswith(start + " "):
                line += shlex.split(more.replace("DATASET", shlex.quote(str(dataset))))
        lines.append([*line, "-q", "-p", "no:cacheprovider"] if line[0] == "pytest" else line)
    done = shell(work, work / "site", [*lines, ["python", "-c", STOCK]])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\b4 passed\b", done.stdout), done.stdout[-4000:]
    return work


@pytest.mark.slow
def test_diagnose_measured_the_family(walked: Path) -> None:
    results = Results.load(walked / "diagnosis" / "results.json")
    found = results.kind, results.policies[0].family, results.teacher_num_steps
    assert found == ("diagnose", "tinyflow", 10)
    assert results.curvature[0].s > 0
    assert results.floor.rms > 0


@pytest.mark.slow
def test_the_student_is_the_teachers_checkpoint_in_one_step(walked: Path) -> None:
    teacher, student = (
        walked / name / "checkpoints/last/pretrained_model" for name in ("teacher", "student")
    )
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (teacher, student))
    assert (before.pop("integration_steps"), after.pop("integration_steps")) == (10, 1)
    # The processors are copied, and the config is but for what its folder says of itself.
    assert before | {"pretrained_path": None} == after | {"pretrained_path": None}
    old, new = (load_file(folder / "model.safetensors") for folder in (teacher, student))
    assert old.keys() == new.keys()
    trained = {name for name in old if not torch.equal(old[name], new[name])}
    assert trained == {name for name in old if name.startswith("head.")}


# What a distribution can get wrong

NEARLY = """
from chordflow.policies import FlowPolicy
from chordflow.policies.smolvla import SmolVLAFlowPolicy

class Unfinished(FlowPolicy):
    family = "elsewhere"
    def encode(self, batch): ...

class Unregistered(SmolVLAFlowPolicy):
    family = "elsewhere"
"""


def distribution(
    site: Path, name: str, value: str, module: str | None = None, family: str = "elsewhere"
) -> None:
    """An installed distribution as importlib sees it."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[chordflow.families]\n{family} = {value}\n")
    if module is not None:
        (site / f"{value.split(':')[0]}.py").write_text(textwrap.dedent(module))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.parametrize(("value", "module", "said"), [
    ("not_there_at_all:Adapter", None, "(ModuleNotFoundError: No module named 'not_there_at_all')"),
    ("family_of_another_kind:Adapter", "class Adapter: ...", "is no subclass of chordflow.policies.FlowPolicy"),
    ("family_of_a_function:Adapter", "def Adapter(policy): ...", "is no subclass of"),
    ("family_nearly:Unfinished", NEARLY,
     "does not define policy_class, steps_field, encoded_once, role_of, velocity (see docs/add-a-family.md)"),
    ("family_nearly:SmolVLAFlowPolicy", NEARLY, "is for family 'smolvla'"),
    ("family_nearly:Unregistered", NEARLY, "register_subclass('elsewhere') was not called"),
])  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_one_sentence(
    site: Path, value: str, module: str | None, said: str
) -> None:
    distribution(site, "robots-elsewhere", value, module)
    assert "elsewhere" in supported_families()
    with pytest.raises(UserError) as refused:
        adapter_for("elsewhere", "teacher.path=x: config.json")
    message = str(refused.value)
    assert message.startswith("teacher.path=x: config.json is of policy type 'elsewhere', whose adapter ")
    assert f"{value} of robots-elsewhere" in message
    assert said in message
    assert message.endswith("; repair or uninstall that distribution.")


def test_two_distributions_with_one_family_are_named(site: Path) -> None:
    for name in ("robots-here", "robots-there"):
        distribution(site, name, "not_there_at_all:Adapter")
    with pytest.raises(UserError, match="uninstall all but one") as refused:
        adapter_for("elsewhere")
    assert "robots-here" in str(refused.value)
    assert "robots-there" in str(refused.value)


def test_a_family_that_chordflow_has_keeps_its_adapter(site: Path) -> None:
    distribution(site, "robots-elsewhere", "not_there_at_all:Adapter", family="smolvla")
    assert adapter_for("smolvla").__module__ == "chordflow.policies.smolvla"
