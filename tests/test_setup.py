"""Set-up: what scripts/setup.sh does on machines that hold this or that.

Stand-ins for python3.12 and uv record how they are called and install nothing, so each case takes a fraction
of a second. The PATH holds them and a few tools of the shell, never the machine's own Pythons.
"""

import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from script_files import ROOT

TOOLS = ["sh", "cat", "chmod", "cp", "date", "dirname", "env", "mkdir", "mv", "rm", "sed", "tail"]

# Stands for python3.12, and for the venv's own python: records the calls that install, passes the rest on.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *sys.executable*) echo "$0" ;;
    "-m venv "*)
        echo "python venv" >>"$CALLS"
        mkdir -p "$3/bin" "$3/lib/python3.12/site-packages"
        cp "$0" "$3/bin/python" ;;
    "-m uv --version") test -e "$(dirname "$0")/uv-is-here" ;;
    "-m pip --version") ;;
    "-m pip install "*) echo "pip install uv" >>"$CALLS"; : >"$(dirname "$0")/uv-is-here" ;;
    "-m uv "*) shift 2; exec sh "$FAKE_UV" "$@" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""

FAKE_UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
if [ -e "$FAIL" ]; then echo "the disk is full"; exit 1; fi
case "$*" in
    "venv "*) mkdir -p .venv/bin .venv/lib/python3.12/site-packages; cp "$FAKE_PYTHON" .venv/bin/python ;;
    *"--editable ."*) printf '%s/src' "$(pwd -P)" >.venv/lib/python3.12/site-packages/_chordflow.pth ;;
esac
"""


class Machine:
    """A machine with a checkout, a PATH of its own, and stand-ins that record how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkout = folder, folder / "мой код" / "chordflow"
        self.bin, self.kept = folder / "bin", folder / "kept"
        self.calls_file, self.fail = folder / "calls", folder / "fail"
        for path in (self.checkout / "packages" / "env", self.bin, self.kept):
            path.mkdir(parents=True)
        for name in ("scripts", "pyproject.toml", "requirements.lock"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.checkout / name)
        (self.checkout / "packages" / "env" / "pyproject.toml").write_text("[project]\n")
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        script(self.kept / "python", FAKE_PYTHON)
        script(self.kept / "uv", FAKE_UV)

    def give(self, name: str, text: str) -> None:
        script(self.bin / name, text)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin), "HOME": str(self.folder), "CALLS": str(self.calls_file), "FAIL": str(self.fail),
            "FAKE_PYTHON": str(self.kept / "python"), "FAKE_UV": str(self.kept / "uv"), "REAL_PYTHON": sys.executable,
        }  # fmt: skip
        return subprocess.run(
            ["sh", "scripts/setup.sh"], cwd=self.checkout, env=environment, capture_output=True,
            text=True, encoding="utf-8", timeout=60,
        )  # fmt: skip

    def take_calls(self) -> list[str]:
        """What was called since the last question, without the venv's path."""
        calls = self.calls_file.read_text(encoding="utf-8") if self.calls_file.exists() else ""
        self.calls_file.unlink(missing_ok=True)
        return calls.splitlines()


def script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


INSTALLS = [
    "uv pip install --python .venv/bin/python --compile-bytecode -r requirements.lock",
    "uv pip install --python .venv/bin/python --no-deps --editable . --editable packages/env",
]
PYTHON_CALLS = ["python venv", "pip install uv", *INSTALLS]
UV_CALLS = ["uv venv --quiet --python 3.12 .venv", *INSTALLS]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_neither_python_nor_uv_is_one_sentence(machine: Machine) -> None:
    machine.give("python3", "#!/bin/sh\nexit 1\n")
    # One of pyenv's shims with nothing behind it.
    machine.give("python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    done = machine.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "chordflow: neither python3.12 nor uv is on the PATH: install one of them, and run this again.\n"
    )
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize(("name", "text", "calls"), [
    ("python3.12", FAKE_PYTHON, PYTHON_CALLS), ("uv", FAKE_UV, UV_CALLS),
])  # fmt: skip
def test_one_of_the_two_is_enough(machine: Machine, name: str, text: str, calls: list[str]) -> None:
    machine.give(name, text)
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.take_calls() == calls
    assert all(line.startswith("chordflow: ") for line in done.stdout.splitlines())
    again = machine.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert machine.take_calls() == []


def test_changed_requirements_are_installed_and_a_moved_checkout_is_set_up_anew(machine: Machine) -> None:
    machine.give("uv", FAKE_UV)
    machine.run()
    machine.take_calls()
    with (machine.checkout / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert machine.run().returncode == 0
    assert machine.take_calls() == INSTALLS
    assert machine.run().stdout == ""
    # The paths of editable packages hold no letter of the checkout's own, which a locale may not have.
    path_file = machine.checkout / ".venv" / "lib" / "python3.12" / "site-packages" / "_chordflow.pth"
    relative = path_file.read_text(encoding="ascii").strip()
    assert (path_file.parent / relative).resolve() == machine.checkout / "src"
    machine.checkout = machine.checkout.rename(machine.folder / "elsewhere")
    assert "has moved" in machine.run().stdout
    assert machine.take_calls() == UV_CALLS


def test_a_failed_install_shows_why_and_is_begun_anew(machine: Machine) -> None:
    machine.give("python3.12", FAKE_PYTHON)
    machine.fail.touch()
    failed = machine.run()
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr
    what = "chordflow: could not install the packages of requirements.lock"
    assert failed.stderr.splitlines()[-1].startswith(what)
    machine.take_calls()

    machine.fail.unlink()
    half_done = machine.checkout / ".venv" / "half done"
    half_done.touch()
    assert machine.run().returncode == 0
    assert not half_done.exists()
    assert machine.take_calls() == PYTHON_CALLS


def test_a_venv_that_is_there_is_used_or_left_alone(machine: Machine) -> None:
    machine.give("uv", FAKE_UV)
    folder = machine.checkout / ".venv" / "bin"
    for path in (folder, folder.parent / "lib" / "python3.12" / "site-packages"):
        path.mkdir(parents=True)
    script(folder / "python", "#!/bin/sh\nexit 1\n")
    done = machine.run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert ".venv is there, but it holds no Python 3.12" in done.stderr
    script(folder / "python", FAKE_PYTHON)
    (folder / "mine").touch()
    assert machine.run().returncode == 0
    assert machine.take_calls() == INSTALLS
    assert (folder / "mine").exists()


def test_every_requirement_is_pinned_and_the_pin_fits() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}
    for file in (ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        for requirement in map(Requirement, chain(project["dependencies"], *extras)):
            if requirement.name not in (project["name"], "chordflow_runtime"):
                (exact,) = pins[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(exact.version), f"{requirement}: run `make lock`"
