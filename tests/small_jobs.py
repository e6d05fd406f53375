"""What whole jobs leave out where no test looks at it: most of their time goes into figures and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chordflow import api
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.measure import Measures, measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.results.schema import Results

MEASURING = [f"chordflow.experiments.{name}.measure" for name in ("diagnose", "evaluate", "student_results")]


class FewSteps(MeasureConfig):
    """A converged ODE of twice the deployed steps, which is the fewest that have a floor, in place of a hundred."""

    def __post_init__(self) -> None:
        """What was given was checked before."""

    def fine_num_steps(self, deployed: int) -> int:
        return 2 * deployed


def _measure_in_few_steps(policies: Any, observations: Any, config: MeasureConfig, **more: Any) -> Measures:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chordflow.evaluation.measure.measure_latency", partial(measure_latency, warm_up=1))
        return measure(policies, observations, FewSteps(**vars(config)), **more)


@pytest.fixture(scope="session", autouse=True)
def few_steps() -> Iterator[None]:
    """Jobs measure in few steps; what `measure` itself finds is tested at full length."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MEASURING:
            patch.setattr(name, _measure_in_few_steps)
        yield


@pytest.fixture
def full_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For figures that are compared with published ones."""
    for name in MEASURING:
        monkeypatch.setattr(name, measure)


def _undrawn(results: Results, folder: Path, remedy: str) -> tuple[Path, ...]:
    (folder / "figures").mkdir(exist_ok=True)
    return (folder / "report.html",)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own jobs draw nothing, unless it is marked `pictures`; those of shared fixtures do."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(api, "_illustrate", _undrawn)
