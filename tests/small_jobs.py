"""What whole jobs leave out where no test looks at it: most of their time goes into figures and pictures."""

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import chordflow.experiments
from chordflow import api
from chordflow.cli.main import main
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.measure import Measures, Yardstick, measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.results.schema import Results
from small_runs import options


class FewSteps(MeasureConfig):
    """A converged ODE of twice the deployed steps, which is the fewest that have a floor, in place of a hundred."""

    def __post_init__(self) -> None:
        """What was given was checked before."""

    def fine_num_steps(self, deployed: int) -> int:
        return 2 * deployed


def _measure(policies: Any, observations: Any, config: MeasureConfig, **more: Any) -> Measures:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chordflow.evaluation.measure.measure_latency", partial(measure_latency, warm_up=1))
        return measure(policies, observations, FewSteps(**vars(config)), **more)


def _yardstick(teacher: Any, observations: Any, config: MeasureConfig, *more: Any) -> Yardstick:
    return Yardstick(teacher, observations, FewSteps(**vars(config)), *more)


def _replace_in_jobs(patch: pytest.MonkeyPatch, found: Any, replacement: Callable[..., Any]) -> None:
    package = chordflow.experiments
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for name in [name for name, value in vars(module).items() if value is found]:
            patch.setattr(module, name, replacement)


@contextlib.contextmanager
def measured_in_few_steps() -> Iterator[None]:
    """What `measure` itself finds is tested at full length."""
    with pytest.MonkeyPatch.context() as patch:
        _replace_in_jobs(patch, measure, _measure)
        _replace_in_jobs(patch, Yardstick, _yardstick)
        yield


@contextlib.contextmanager
def measured_in_full() -> Iterator[None]:
    """For figures that are compared with published ones, or with those of another process."""
    with pytest.MonkeyPatch.context() as patch:
        _replace_in_jobs(patch, _measure, measure)
        _replace_in_jobs(patch, _yardstick, Yardstick)
        yield


@pytest.fixture
def full_measures() -> Iterator[None]:
    """The same for a test."""
    with measured_in_full():
        yield


_illustrate = api._illustrate


def _undrawn(results: Results, folder: Path, remedy: str) -> tuple[Path, ...]:
    (folder / "figures").mkdir(exist_ok=True)
    return (folder / "report.html",)


@pytest.fixture(scope="session", autouse=True)
def few_steps() -> Iterator[None]:
    """Jobs measure in few steps and draw nothing."""
    with measured_in_few_steps(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_illustrate", _undrawn)
        yield


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """For jobs whose pictures and pages are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_illustrate", _illustrate)
        yield


@pytest.fixture(autouse=True)
def drawn_where_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """The jobs of a test that is marked `pictures` draw."""
    with drawn() if request.node.get_closest_marker("pictures") else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def whole_run(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with moving averages that nothing stopped, without pictures; not to be written to."""
    output = tmp_path_factory.mktemp("whole") / "läuft 你好"
    assert main(options(checkpoint, dataset_root, output, "--ema.enable=true")) == 0
    return output
