"""Set-up: what scripts/setup.sh does on machines that hold this or that.

Stand-ins for python3.12 and uv record how they are called and install nothing, so each case takes a fraction
of a second. The PATH holds them and a few tools of the shell, never the machine's own Pythons.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    "sh",
    "cat",
    "chmod",
    "cp",
    "date",
    "dirname",
    "env",
    "make",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "tail",
    "awk",
)

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
    *"--editable ."*)
        printf '%s/src' "$(pwd -P)" >.venv/lib/python3.12/site-packages/_chordflow.pth
        printf '#!/bin/sh\\necho "chordflow $*" >>"$CALLS"\\n' >.venv/bin/chordflow
        printf 'mkdir -p "${2#--output_dir=}"\\n' >>.venv/bin/chordflow
        chmod +x .venv/bin/chordflow ;;
esac
"""


class Machine:
    """A machine with a checkout, a PATH of its own, and stand-ins that record how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "мой код" / "chordflow"
        self.bin = folder / "bin"
        self.kept = folder / "kept"
        self.calls_file = folder / "calls"
        self.fail = folder / "fail"
        for path in (self.checkout / "packages" / "env", self.bin, self.kept):
            path.mkdir(parents=True)
        for name in ("scripts", "Makefile", "pyproject.toml", "requirements.lock"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.checkout / name)
        (self.checkout / "packages" / "env" / "pyproject.toml").write_text("[project]\n")
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        self._write(self.kept / "python", FAKE_PYTHON)
        self._write(self.kept / "uv", FAKE_UV)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def give_python(self, name: str = "python3.12") -> None:
        self._write(self.bin / name, FAKE_PYTHON)

    def give_uv(self) -> None:
        self._write(self.bin / "uv", FAKE_UV)

    def give(self, name: str, script: str) -> None:
        self._write(self.bin / name, script)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "CALLS": str(self.calls_file),
            "FAIL": str(self.fail),
            "FAKE_PYTHON": str(self.kept / "python"),
            "FAKE_UV": str(self.kept / "uv"),
            "REAL_PYTHON": sys.executable,
        }
        return subprocess.run(
            command or ("sh", "scripts/setup.sh"),
            cwd=self.checkout,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        )

    def take_calls(self) -> list[str]:
        """What was called since the last question, without the venv's path."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text(encoding="utf-8").splitlines()
        self.calls_file.unlink()
        return calls


INSTALLS = [
    "uv pip install --python .venv/bin/python -r requirements.lock",
    "uv pip install --python .venv/bin/python --no-deps --editable . --editable packages/env",
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_neither_python_nor_uv_is_one_sentence(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "chordflow: neither python3.12 nor uv is on the PATH: install one of them, and run this again.\n"
    )
    assert not (machine.checkout / ".venv").exists()


def test_another_python_does_not_count(machine: Machine) -> None:
    machine.give("python3", "#!/bin/sh\nexit 1\n")
    # One of pyenv's shims with nothing behind it.
    machine.give("python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    done = machine.run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_only_python(machine: Machine) -> None:
    machine.give_python()
    first = machine.run()
    assert (first.returncode, first.stderr) == (0, "")
    assert machine.take_calls() == ["python venv", "pip install uv", *INSTALLS]
    assert all(line.startswith("chordflow: ") for line in first.stdout.splitlines())

    second = machine.run()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert machine.take_calls() == []


def test_pyenvs_python_that_no_shim_leads_to(machine: Machine) -> None:
    machine.give("python3.12", "#!/bin/sh\nexit 127\n")
    versions = machine.folder / ".pyenv" / "versions" / "3.12.9" / "bin"
    versions.mkdir(parents=True)
    machine._write(versions / "python3.12", FAKE_PYTHON)
    assert machine.run().returncode == 0
    assert machine.take_calls() == ["python venv", "pip install uv", *INSTALLS]


def test_only_uv(machine: Machine) -> None:
    machine.give_uv()
    first = machine.run()
    assert (first.returncode, first.stderr) == (0, "")
    assert machine.take_calls() == ["uv venv --quiet --python 3.12 .venv", *INSTALLS]
    assert machine.run().stdout == ""
    assert machine.take_calls() == []


def test_changed_requirements_are_installed_into_the_same_venv(machine: Machine) -> None:
    machine.give_uv()
    machine.run()
    machine.take_calls()
    with (machine.checkout / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert machine.run().returncode == 0
    assert machine.take_calls() == INSTALLS
    assert machine.run().stdout == ""


def test_a_failed_install_shows_why_and_is_begun_anew(machine: Machine) -> None:
    machine.give_python()
    machine.fail.touch()
    failed = machine.run()
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith(
        "chordflow: could not install the packages of requirements.lock"
    )
    machine.take_calls()

    machine.fail.unlink()
    half_done = machine.checkout / ".venv" / "half done"
    half_done.touch()
    assert machine.run().returncode == 0
    assert not half_done.exists()
    assert machine.take_calls() == ["python venv", "pip install uv", *INSTALLS]
    assert machine.run().stdout == ""


def test_a_moved_checkout_is_set_up_anew(machine: Machine) -> None:
    machine.give_uv()
    machine.run()
    machine.take_calls()
    moved = machine.folder / "elsewhere"
    machine.checkout.rename(moved)
    machine.checkout = moved
    done = machine.run()
    assert "has moved" in done.stdout
    assert machine.take_calls() == ["uv venv --quiet --python 3.12 .venv", *INSTALLS]
    assert machine.run().stdout == ""


def test_a_venv_that_is_there_already_is_used(machine: Machine) -> None:
    machine.give_uv()
    (machine.checkout / ".venv" / "bin").mkdir(parents=True)
    machine._write(machine.checkout / ".venv" / "bin" / "python", FAKE_PYTHON)
    mine = machine.checkout / ".venv" / "mine"
    mine.touch()
    assert machine.run().returncode == 0
    assert machine.take_calls() == INSTALLS
    assert mine.exists()


def test_a_venv_of_another_python_is_left_alone(machine: Machine) -> None:
    machine.give_uv()
    other = machine.checkout / ".venv" / "bin" / "python"
    other.parent.mkdir(parents=True)
    machine._write(other, "#!/bin/sh\nexit 1\n")
    done = machine.run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert ".venv" in done.stderr
    assert other.exists()


def test_editable_paths_hold_no_letter_of_the_checkouts_path(machine: Machine) -> None:
    machine.give_uv()
    machine.run()
    path_file = machine.checkout / ".venv" / "lib" / "python3.12" / "site-packages" / "_chordflow.pth"
    relative = path_file.read_text(encoding="ascii").strip()
    assert (path_file.parent / relative).resolve() == machine.checkout / "src"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_demo_can_be_run_again(machine: Machine) -> None:
    machine.give_uv()
    for expected in ("outputs/demo", "outputs/demo-2", "outputs/demo-3"):
        done = machine.run("make", "demo", "DEMO_ARGS=--seed=1")
        assert done.returncode == 0, done.stderr
        assert machine.take_calls()[-1] == f"chordflow demo --output_dir={expected} --seed=1"


def test_every_requirement_is_pinned_and_the_pin_fits() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"[a-z0-9]", line) for line in lines)
    assert not any("://" in line or line.startswith("-") for line in lines)
    pins = {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}
    for file in (ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        wanted = [*project["dependencies"], *project.get("optional-dependencies", {}).get("dev", [])]
        for requirement in map(Requirement, wanted):
            if requirement.name == project["name"]:
                wanted += [
                    text for extra in requirement.extras for text in project["optional-dependencies"][extra]
                ]
                continue
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in requirements.lock: run `make lock`"
            (exact,) = pin
            assert requirement.specifier.contains(exact.version), (
                f"{requirement} does not admit {exact.version}"
            )
