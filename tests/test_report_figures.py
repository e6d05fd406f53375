"""The pictures open, are large enough to read, and hold what the page's plots hold."""

import dataclasses
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from chordflow.errors import UserError
from chordflow.reporting import figures, flow_plots
from chordflow.reporting.figures import drawn, save_figures
from chordflow.results.actions import TrajectoryRow
from chordflow.results.schema import LossCurve, Results
from report_samples import gap, sample


def test_three_pictures_that_open(tmp_path: Path) -> None:
    folder = tmp_path / "images été 图"
    folder.mkdir()
    before = dict(matplotlib.rcParams)
    paths = save_figures(sample(), folder)
    assert dict(matplotlib.rcParams) == before, "no global state is left behind"
    assert [p.name for p in paths] == ["trajectories.png", "gap.png", "loss.png"]
    assert sorted(p.name for p in folder.iterdir()) == ["gap.png", "loss.png", "trajectories.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert image.height >= 500
            assert image.info["dpi"][0] >= 150
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    once = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in save_figures(sample(), folder)] == once


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    nothing = sample(trajectories=[], gaps=[gap("teacher", 10, "deployed", 0.0)], loss=None)
    assert save_figures(nothing, tmp_path) == []
    assert save_figures(dataclasses.replace(nothing, loss=LossCurve([], [])), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trajectories\.png cannot be written"):
        save_figures(sample(), tmp_path / "none")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_figures(sample(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_gap_picture_holds_every_euler_row_and_the_floor() -> None:
    results = sample()
    near, far = drawn(flow_plots.gaps(results)).axes
    for panel, reference in ((near, "deployed"), (far, "converged")):
        found = [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()]
        for policy in ("teacher", "student"):
            rows = [results.gap(policy, n, reference) for n in (1, 2, 4, 10)]
            # The deployed teacher's gap to itself is zero, which a logarithmic axis does not have.
            drawn_rows = [row for row in rows if row is not None and row.rms > 0]
            expected = [row.nfe for row in drawn_rows], pytest.approx([100 * row.rms for row in drawn_rows])
            assert expected in found
        assert "midpoint" in " ".join(str(line.get_label()) for line in panel.get_lines())
    assert ([0, 1], pytest.approx([4.3, 4.3])) in found
    assert [text.get_text() for text in far.texts] == ["floor 4.3 %"]
    assert near.get_title(loc="left") == "Gap to the teacher as deployed (ten steps)"
    assert near.get_ylim() == far.get_ylim()


def test_paths_and_chords_start_and_end_together() -> None:
    teacher, student = drawn(flow_plots.trajectories(sample())).axes
    assert (teacher.get_xlim(), teacher.get_ylim()) == (student.get_xlim(), student.get_ylim())
    chords, paths = (line.get_xdata() for line in teacher.get_lines()[:2])
    rows = [row for row in sample().trajectories if row.policy == "teacher"]
    assert np.isnan(chords).sum() == np.isnan(paths).sum() == len(rows)
    assert chords[:2] == pytest.approx([rows[0].x[0], rows[0].x[-1]], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"trajectories": [TrajectoryRow("teacher", 0, [2.0, 2.0], [1.0, 1.0])]},
        {"trajectories": [TrajectoryRow("student", 0, [0.0, 1.0], [0.0, 50.0])], "curvature": []},
        {"trajectories": [TrajectoryRow("teacher", i, [0.0, 1.0], [0.0, float(i)]) for i in range(100)]},
        {"gaps": [gap("teacher", 1, "deployed", 0.2)], "student": None},
        {"gaps": [gap("teacher", 10, "converged", 0.04)]},
        {"gaps": [gap("teacher", 1, "deployed", 1e-6), gap("student", 1, "deployed", 3.0)]},
        {"gaps": [gap("student", 1, "deployed", 0.061), gap("student", 2, "deployed", 0.0611)]},
        {"loss": LossCurve([1], [0.1])},
        {"loss": LossCurve([1, 2], [0.1, 0.0])},
        {"loss": LossCurve([1, 2], [0.1, -0.1])},
    ],
)
def test_few_or_extreme_measures_are_drawn(changes: dict[str, object]) -> None:
    results: Results = sample(**changes)
    for plots in (flow_plots.trajectories(results), flow_plots.gaps(results), flow_plots.loss(results)):
        figure = drawn(plots)
        assert figures._png(figure)
        for panel in figure.axes:
            low, high = sorted(panel.get_ylim())
            assert any(low <= tick <= high for tick in panel.get_yticks())
