"""A study of beginnings as one HTML file that holds all it needs and fetches nothing."""

from __future__ import annotations

import json

from plotly.offline import get_plotlyjs

from chordflow.report.init_study_plots import plots
from chordflow.report.init_study_table import facts, sections
from chordflow.report.page import asset, command_lines, environment, flat, json_in_html, policy
from chordflow.results.init_study import InitStudy
from chordflow.results.init_study_summary import headline
from chordflow.results.wording import clean


def page(study: InitStudy) -> str:
    """The page's HTML; whatever comes out of the study is escaped."""
    groups = plots(study)
    drawn = {plot.key: json.loads(plot.figure.to_json()) for group in groups for plot in group}
    scripts = {name: asset(f"{name}.js") for name in ("theme", "report")} | {"plotly": get_plotlyjs()}
    return environment().get_template("study.html.j2").render(
        title=f"Beginnings: {clean(study.teacher)}",
        study=study,
        policy=policy(scripts.values()),
        style=asset("style.css"),
        scripts=scripts,
        headline=headline(study),
        groups=groups,
        plots=json_in_html(drawn),
        sections=sections(study),
        facts=facts(study),
        command=command_lines(study.command),
        settings=list(flat(study.settings)),
    )  # fmt: skip
