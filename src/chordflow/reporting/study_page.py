"""A study as one HTML file that holds all it needs and fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from plotly.offline import get_plotlyjs

from chordflow.reporting import init_study_plots, init_study_table, rounds_plots, rounds_table
from chordflow.reporting.page import asset, command_lines, environment, flat, json_in_html, policy
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import Section
from chordflow.results import init_study_summary, rounds_summary
from chordflow.results.init_study import InitStudy
from chordflow.results.rounds_study import RoundsStudy
from chordflow.results.wording import clean, plural


def init_page(study: InitStudy) -> str:
    """The HTML of a study of beginnings; whatever comes out of the study is escaped."""
    return _page(
        study,
        "Beginnings",
        "study.json",
        f"{study.steps} steps of each run",
        init_study_summary.headline(study),
        init_study_plots.plots(study),
        init_study_table.sections(study),
        init_study_table.facts(study),
    )


def rounds_page(study: RoundsStudy) -> str:
    """The HTML of a study of rounds; whatever comes out of the study is escaped."""
    return _page(
        study,
        "Rounds",
        "rounds.json",
        f"{plural(study.rounds, 'round')} of {plural(study.steps, 'step')}",
        rounds_summary.headline(study),
        rounds_plots.plots(study),
        [rounds_table.table(study)],
        rounds_table.facts(study),
    )


def _page(
    study: InitStudy | RoundsStudy,
    heading: str,
    file: str,
    each: str,
    headline: str,
    groups: Sequence[Sequence[Plot]],
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
) -> str:
    drawn = {plot.key: json.loads(plot.figure.to_json()) for group in groups for plot in group}
    scripts = {name: asset(f"{name}.js") for name in ("theme", "report")} | {"plotly": get_plotlyjs()}
    return environment().get_template("study.html.j2").render(
        title=f"{heading}: {clean(study.teacher)}",
        heading=heading,
        file=file,
        subtitle=f"{each}, seeds {', '.join(map(str, study.seeds))}",
        teacher=study.teacher,
        policy=policy(scripts.values()),
        style=asset("style.css"),
        scripts=scripts,
        # A browser breaks lines within an arrow of two characters.
        headline=headline.replace("->", "\u2192"),
        groups=groups,
        plots=json_in_html(drawn),
        sections=sections,
        facts=facts,
        command=command_lines(study.command),
        settings=list(flat(study.settings)),
    )  # fmt: skip
