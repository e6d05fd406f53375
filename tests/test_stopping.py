"""Ctrl-C and SIGTERM: what is whole is kept, and the run resumes to the same bits."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chordflow import stopping
from chordflow.console import bar
from chordflow.couplings import BufferConfig
from chordflow.couplings.making import BlockMaker
from chordflow.errors import UserError
from chordflow.stopping import SIGNALS, Stopped
from chordflow.training.loop import read_metrics
from chordflow.training.methods import ReflowMethod, ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from chordflow.training.steps import EMAConfig
from gaussian_setup import make_observations
from test_training import Run, run

STEPS = 8
AVERAGED = EMAConfig(enable=True, decay=0.9)
SLIDES = BufferConfig(8, 4, 1, 4)
GROWS = BufferConfig(16, 4, 4, 4, start_observations=4)
"""In eight steps of eight couplings, from one block to three."""


def names(output: Path) -> list[str]:
    folder = output / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def last(output: Path) -> Path | None:
    link = output / "checkpoints" / "last"
    return link.resolve() if link.exists() else None


def same(*checkpoints: Path) -> None:
    for name in ("master_weights", "ema_weights", "optimizer_state"):
        files = [checkpoint / "training_state" / f"{name}.safetensors" for checkpoint in checkpoints]
        one, other = (file.read_bytes() if file.exists() else None for file in files)
        assert one == other, name


@contextlib.contextmanager
def signal_at(place: int, number: int = signal.SIGINT) -> Iterator[list[int]]:
    """A signal at a call of a Python function, whichever it is: the moment is anywhere in the run."""
    calls = [0]

    def count(_frame: object, event: str, _argument: object) -> None:
        calls[0] += event == "call"
        if calls[0] == place and event == "call":
            signal.raise_signal(number)

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def train(output: Path, **options: Any) -> Run:
    output.mkdir(exist_ok=True)
    return run(output, **{"steps": STEPS, "save_freq": 3, **options})


@pytest.mark.parametrize(("moments", "options"), [
    (10, {"optimizer": SOAPConfig(lr=1e-3, precondition_frequency=3), "buffer": GROWS, "ema": AVERAGED}),
    (3, {"optimizer": AdamWConfig(lr=1e-3), "buffer": SLIDES}),
    (1, {"optimizer": AdamWConfig(lr=1e-3), "buffer": GROWS, "ema": AVERAGED}),
    (1, {"optimizer": SOAPConfig(lr=1e-3, precondition_frequency=3), "buffer": SLIDES, "ema": AVERAGED}),
], ids=["soap", "adamw", "adamw, grows", "soap, slides"])  # fmt: skip
def test_stopped_at_random_moments_it_resumes_to_the_same_bits(
    tmp_path: Path, moments: int, options: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", **options).output
    with signal_at(0) as calls:
        train(tmp_path / "counted", **options)
    chance = random.Random(5)
    for number, place in enumerate(chance.sample(range(1, calls[0]), moments)):
        output, which = tmp_path / str(number), SIGNALS[number % 2]
        with pytest.raises(Stopped) as caught, stopping.handled(), signal_at(place, which):
            train(output, **options)
        assert caught.value.code == (130, 143)[number % 2]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        left = names(output)
        before = int(left[-2]) if left else 0
        # By save_freq those stay, and one at most by the signal; nothing is half-written.
        assert left == sorted({*(f"{n:06d}" for n in (3, 6) if n <= before), *left[-2:]})
        resumed = train(output, resume_from=last(output), **options)
        assert resumed.trained.samples == 8 * (STEPS - before)
        assert names(output) == names(whole) == ["000003", "000006", "000008", "last"]
        for step in ("000003", "000006", "000008"):
            same(whole / "checkpoints" / step, output / "checkpoints" / step)
        files = (one / "metrics.jsonl" for one in (whole, output))
        lines = [[(line["step"], line["loss"], line["lr"]) for line in read_metrics(file)] for file in files]
        assert lines[0] == lines[1]


class Watched(ReflowMethod):
    """Reflow; something is done in every call of its loss, which is told its number and gives the loss a factor."""

    def __init__(self, hook: Callable[[int], float]) -> None:
        super().__init__(ReflowMethodConfig())
        self.hook, self.calls = hook, 0

    def loss(self, *arguments: Any) -> Tensor:
        self.calls += 1
        return super().loss(*arguments) * self.hook(self.calls)


def signalled(at: int, number: int) -> Watched:
    def hook(call: int) -> float:
        if call == at:
            signal.raise_signal(number)
        return 1.0

    return Watched(hook)


def test_while_couplings_are_made_it_stops_at_once_with_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where episodes are run for them, which may take minutes."""
    made = BlockMaker._make

    def make(self: BlockMaker, number: int, items: Any) -> Any:
        if number == 4:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")
        return made(self, number, items)

    options: dict[str, Any] = {"save_freq": 0, "buffer": SLIDES}
    whole = train(tmp_path / "whole", **options)
    monkeypatch.setattr(BlockMaker, "_make", make)
    with pytest.raises(Stopped):
        train(tmp_path / "out", **options)
    monkeypatch.undo()
    reached, link = names(tmp_path / "out")
    assert (0 < int(reached) < STEPS, link) == (True, "last")
    train(tmp_path / "out", resume_from=last(tmp_path / "out"), **options)
    same(whole.trained.checkpoint, tmp_path / "out" / "checkpoints" / "last")


def test_weights_that_the_last_update_destroyed_are_not_saved(tmp_path: Path) -> None:
    """Neither by the clock nor by a signal: the checkpoint before is the one to resume from."""

    # Every second call looks at the weights that are about to be saved.
    with pytest.raises(UserError, match=r"not finite at step 2 .*after the update.*000001"):
        run(
            tmp_path,
            steps=STEPS,
            save_minutes=1e-9,
            method=Watched(lambda call: math.nan if call == 4 else 1.0),
        )
    assert names(tmp_path) == ["000001", "last"]


@pytest.mark.parametrize(("minutes", "save_freq", "expected"), [
    (1e-9, 3, ["1", "2", "3", "3 4", "3 5", "3 6", "3 6 7", "3 6 8"]),
    (1e6, 0, [""] * 7 + ["8"]),
    (0.0, 5, [""] * 4 + ["5"] * 3 + ["5 8"]),
])  # fmt: skip
def test_timed_checkpoints_replace_one_another_and_the_others_stay(
    tmp_path: Path, minutes: float, save_freq: int, expected: list[str]
) -> None:
    found = []

    def look(_call: int) -> float:
        if torch.is_grad_enabled():
            found.append(" ".join(str(int(name)) for name in names(tmp_path) if name != "last"))
        return 1.0

    # At every step's beginning.
    run(tmp_path, steps=STEPS, save_freq=save_freq, save_minutes=minutes, method=Watched(look))
    look(0)
    assert found == ["", *expected]


def test_a_timed_checkpoint_that_becomes_the_student_stays(tmp_path: Path) -> None:
    """Where fewer steps are asked for on resuming; another process replaces one that this has left, too."""
    with pytest.raises(Stopped):
        run(tmp_path, steps=STEPS, method=signalled(3, signal.SIGINT))
    with pytest.raises(Stopped):
        run(tmp_path, steps=STEPS, resume_from=last(tmp_path), method=signalled(2, signal.SIGINT))
    assert names(tmp_path) == ["000005", "last"]
    run(tmp_path, steps=5, resume_from=last(tmp_path))
    run(tmp_path, steps=STEPS, resume_from=last(tmp_path))
    assert names(tmp_path) == ["000005", "000008", "last"]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("it went on")


def test_held_it_waits_and_otherwise_it_does_not() -> None:
    reached = []

    def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        reached.append("held")
        with stopping.held():
            reached.append("held by both")
        reached.append("after the inner one")

    with pytest.raises(Stopped, match="ended by SIGTERM"), stopping.held():
        work()
    assert reached == ["held", "held by both", "after the inner one"]
    with pytest.raises(Stopped, match="interrupted"), stopping.handled():
        interrupt()
    with pytest.raises(Stopped), stopping.held(), stopping.at_once():
        interrupt()
    assert stopping.requested() == 0


def test_a_signal_after_the_work_says_that_all_is_saved() -> None:
    def work() -> None:
        with stopping.handled():
            with stopping.noting(lambda: "resume"):
                pass
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(stopping.Stopped) as caught:
        work()
    assert caught.value.__notes__ == ["all is saved."]


def test_a_signal_that_a_library_swallows_or_makes_an_error_of_is_raised_again() -> None:
    with stopping.handled(), bar("work") as progress:
        with contextlib.suppress(BaseException):
            interrupt()
        with pytest.raises(Stopped):
            progress.update(1, 2)

    def convert() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("a callback failed") from error

    def convert_in_c() -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise UserError("teacher.path: it cannot be read")

    for converted in (convert, convert_in_c):
        with pytest.raises(Stopped) as caught, stopping.handled(), stopping.noting(lambda: "start again."):
            converted()
        assert (caught.value.code, caught.value.__notes__) == (143, ["start again."])
        with pytest.raises(Stopped), stopping.handled():
            converted()


def test_what_cannot_be_saved_is_said() -> None:
    def save() -> None:
        signal.raise_signal(signal.SIGINT)
        raise UserError("output_dir: the disk is full")

    with pytest.raises(UserError, match="disk"), stopping.handled(), stopping.noting(str), stopping.held():
        save()


def test_ignored_signals_stay_ignored_and_other_threads_do_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.handled():
            signal.raise_signal(signal.SIGINT)
            assert stopping.requested() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[Any] = []

    def work() -> None:
        with stopping.handled(), stopping.held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


TWICE = """
import os, signal, sys
from chordflow import stopping
now = [0.0]
stopping.time.monotonic = lambda: now[0]
with stopping.handled(), stopping.held("Stopping after the step."):
    for number, seconds in zip(sys.argv[1::2], sys.argv[2::2]):
        now[0] += float(seconds)
        os.kill(os.getpid(), int(number))
    print("saved", flush=True)
"""


@pytest.mark.parametrize(("signals", "code", "said"), [
    ("2 0 2 1", -2, ""),
    ("2 0 15 1", -15, ""),
    # As timeout and launchers send it: it is one.
    ("15 0 15 0.01", 1, "saved\n"),
])  # fmt: skip
def test_a_second_signal_ends_it_at_once(signals: str, code: int, said: str) -> None:
    command = [sys.executable, "-c", TWICE, *signals.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert done.stderr.startswith("Stopping after the step.\n")


def test_a_signal_while_loaders_end_is_taken_by_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.left = iter([1, 2])

        def __iter__(self) -> Loader:
            return self

        def __next__(self) -> int:
            return next(self.left)

        def _shutdown_workers(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("chordflow.couplings.observations.DataLoader", Loader)
    with stopping.handled():
        stream = make_observations(4).stream([[0], [1]])
        assert next(stream) == 1
        stream.close()
        with pytest.raises(stopping.Stopped):
            stopping.check()
