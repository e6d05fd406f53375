"""What a study says in words: one headline for each preset."""

from __future__ import annotations

from collections.abc import Sequence

from chordflow.results.paying import paying_rounds
from chordflow.results.study import STEP_COUNTS, Arm, Study
from chordflow.results.study_figures import (
    Figure,
    Spread,
    diversity,
    gap,
    judged,
    over_seeds,
    reached,
    solved,
    standings,
    success,
    untaken,
    whole_seeds,
    worst_gap,
)
from chordflow.results.wording import clean, number, percent, plural


def headline(study: Study) -> str:
    """What the table says, in words: which arm is best where that is clear, or what the preset asks."""
    if study.preset == "beginnings":
        said = _beginnings(study)
    elif study.preset == "rounds":
        said = _rounds(study)
    else:
        said = _best_arms(study)
    return " ".join(text for text in said if text) or "Nothing is measured yet."


def budget(study: Study, arm: Arm | None = None) -> str:
    """The budget of a trial, such as `2000 steps`."""
    own = arm.steps if arm is not None else None
    return f"{study.seconds:g} s" if study.seconds is not None else plural(own or study.steps or 0, "step")


def level(study: Study) -> str:
    """The level in percent, as it was given."""
    return f"{100 * study.level:g} %"


def counted(items: Sequence[object]) -> str:
    """`a, b and c`."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


# ---- Which arm is best ------------------------------------------------------------------------------------


def _best_arms(study: Study) -> list[str]:
    idle = [arm for arm in study.arms if untaken(study, arm)]
    arms: list[Arm] = []
    for arm in study.arms:
        # Chance alone would part arms with equal settings: the first stands for both.
        twins = [
            a for a in arms if (a.settings, a.teacher, a.steps) == (arm.settings, arm.teacher, arm.steps)
        ]
        if study.trials_of(arm.name) and arm not in idle and not twins:
            arms.append(arm)
    any_steps = [arm for arm in arms if arm.step_counts is None]
    return [
        _nearest(study, arms, "At one step", gap()),
        _nearest(study, any_steps, f"At every step count (the worst of {counted(STEP_COUNTS)})", worst_gap),
        _most_successful(study, arms),
        _untrained(study, arms),
        f"Left out, because the budget was too small for a step: {counted([clean(a.way) for a in idle])}."
        if idle
        else "",
    ]


def _nearest(study: Study, arms: Sequence[Arm], where: str, figure: Figure) -> str:
    """Which arm has the smallest gap, where the ranges over seeds leave no doubt."""
    found = {arm.way: spread for arm in arms if (spread := over_seeds(study, arm, figure)) is not None}
    first = min(found, key=lambda name: found[name].middle, default="")
    rivals = [name for name in found if found[name].low <= found[first].high]
    return _named_best(where, found, first, rivals, "is nearest to the teacher's converged ODE")


def _most_successful(study: Study, arms: Sequence[Arm]) -> str:
    """Which arm succeeds most often, where neither seeds nor episodes leave a doubt.

    Ranges over seeds that do not overlap say nothing of the chance of episodes, which all seeds share: the intervals of
    the median seeds must not overlap either.
    """
    rows = {arm.way: row for arm in arms if (row := success(study, arm)) is not None}
    spreads = {arm.way: over_seeds(study, arm, solved) for arm in arms}
    found = {
        name: Spread(row.rate, s.low, s.high, s.count) for name, row in rows.items() if (s := spreads[name])
    }
    first = max(rows, key=lambda name: rows[name].rate, default="")
    rivals = [
        name
        for name, row in rows.items()
        if found[name].high >= found[first].low or row.interval.high >= rows[first].interval.low
    ]
    return _named_best("In episodes at one step", found, first, rivals, "succeeds most often", decimals=1)


def _named_best(
    where: str,
    found: dict[str, Spread],
    first: str,
    rivals: list[str],
    wins: str,
    decimals: int | None = None,
) -> str:
    """The sentence on the best arm, and on those that cannot be told from it.

    Args:
        where: what is compared.
        found: figures by name, the best among them.
        first: name of the best; empty where there is none.
        rivals: those whose figures overlap with the best's.
        wins: what is said of a clear winner.
        decimals: digits of percentages; two significant ones by default.
    """
    if not first:
        return ""
    named = {name: f"{clean(name)} ({_spread(spread, decimals)})" for name, spread in found.items()}
    if len(found) == 1:
        return f"{where} there is {named[first]} alone."
    # A single seed has no range that could overlap.
    rivals = [n for n, s in found.items() if n in rivals or min(s.count, found[first].count) < 2]
    if set(rivals) <= {first}:
        return f"{where} {named[first]} {wins}."
    single = " with a single seed" if any(found[name].count < 2 for name in {first, *rivals}) else ""
    apart = sorted(
        {first: 0, **dict.fromkeys(rivals)}, key=lambda n: abs(found[n].middle - found[first].middle)
    )
    return f"{where} there is no clear winner{single} between {counted([named[n] for n in apart])}."


def _untrained(study: Study, arms: Sequence[Arm]) -> str:
    """Whether the untrained teacher at two steps is as good as the best student at one."""
    teacher = study.untrained
    free = teacher.figures.gap(2) if teacher is not None else None
    found = {arm.way: spread for arm in arms if (spread := over_seeds(study, arm, gap())) is not None}
    if teacher is None or free is None or not found:
        return ""
    best = min(found, key=lambda name: found[name].middle)
    text = (
        f"The untrained teacher at two steps is {'' if free.rms <= found[best].high else 'not '}as good as "
        f"{clean(best)} at one by its gap ({percent(free.rms)} against {percent(found[best].middle)})"
    )
    rows = {arm.way: row for arm in arms if (row := success(study, arm)) is not None}
    two = next((r for r in teacher.success if r.num_steps == 2 and r.group == "all"), None)
    if rows and two is not None:
        most = max(rows, key=lambda name: rows[name].rate)
        text += (
            f", and {'' if two.interval.high >= rows[most].interval.low else 'not '}as good as {clean(most)} in "
            f"episodes ({percent(two.rate, 1)} against {percent(rows[most].rate, 1)})"
        )
    return f"{text}."


def _spread(spread: Spread, decimals: int | None = None) -> str:
    low, middle, high = (percent(value, decimals) for value in (spread.low, spread.middle, spread.high))
    return middle + (f", {low} to {high} over {spread.count} seeds" if spread.count > 1 else "")


# ---- Beginnings -------------------------------------------------------------------------------------------


def _beginnings(study: Study) -> list[str]:
    """Of every arm the gap, when it falls under the level, and success."""
    said, acted = [], []
    for arm in study.arms:
        spread, within, rate = (
            over_seeds(study, arm, gap()),
            reached(study, arm),
            over_seeds(study, arm, solved),
        )
        if spread is not None and within is not None:
            over = f" ({percent(spread.low)} to {percent(spread.high)})" if spread.count > 1 else ""
            unit = "step" if study.seconds is None else "second"
            when = (
                f"under {level(study)} by {unit} {within.text}"
                if within.marks
                else f"not under {level(study)}"
            )
            said.append(f"{clean(arm.way)}: {percent(spread.middle)}{over}, {when}")
        if rate is not None:
            acted.append(f"{clean(arm.way)}: {percent(rate.middle, 1)}")
    teacher = {
        row.num_steps: row.rate
        for row in (study.untrained.success if study.untrained else [])
        if row.group == "all"
    }
    own = counted(
        [f"{percent(rate, 1)} at {plural(n, 'step')}" for n, rate in sorted(teacher.items())] or [""]
    )
    return [
        f"Gap at one step after {budget(study)}, the median and range over {plural(len(study.seeds), 'seed')}: "
        f"{'; '.join(said)}."
        if said
        else "",
        f"Success at one step: {'; '.join(acted)}. The untrained teacher solves {own}."
        if acted and own
        else "",
    ]


# ---- Rounds -----------------------------------------------------------------------------------------------


def _rounds(study: Study) -> list[str]:
    """After which round another one stopped paying, and what the rounds did to diversity and success."""
    longest = max((len(chain) for chain in study.chains), default=0)
    chains = {c[-1].way: c for c in study.chains if len(c) > 1 and standings(study, c)}
    if not chains:
        return ["No seed has all its rounds yet."]
    whole = min(len(whole_seeds(study, chain)) for chain in chains.values())
    seeds = plural(len(study.seeds), "seed")
    seeds = seeds if whole == len(study.seeds) else f"{whole} of {seeds} so far"
    once = [
        f"curvature {percent(known[1].curvature)}, gap {percent(known[1].gap)} with {clean(chain[0].way)} "
        f"({budget(study, chain[0])})"
        for chain in study.chains
        if len(chain) == 1 and (known := standings(study, chain))
    ]
    return [
        f"Up to {number(longest)} rounds of {budget(study)} with {seeds}, measured by curvature and by the gap at one "
        f"step to the first teacher's converged ODE: {'; '.join(_paying(study, c) for c in chains.values())}.",
        f"One round instead: {'; '.join(once)}." if once else "",
        _kept(study),
        _solved(study),
    ]


def _paying(study: Study, chain: Sequence[Arm]) -> str:
    """Where another round stopped paying, with the figures by which that is said."""
    known, name = standings(study, chain), clean(chain[-1].way)
    curvatures, gaps = (" -> ".join(percent(getattr(s, of)) for s in known) for of in ("curvature", "gap"))
    figures = f"curvature {curvatures}, gap {gaps}"
    paying = paying_rounds(known, study.least_gain)
    if paying == len(chain):
        return f"with {name}, round {paying} still paid ({figures})"
    found = judged(study, chain, paying)
    agree = (
        f", in {found.count - found.pays} of {found.count} seeds as well" if found and found.count > 1 else ""
    )
    where = f"another round stopped paying after round {paying}" if paying else "not even round 1 paid"
    return f"with {name}, {where}{agree} ({figures})"


def _kept(study: Study) -> str:
    """How far the endpoints of the last round still spread."""
    parts, several = [], ""
    for chain in study.chains:
        spread, modes = (over_seeds(study, chain[-1], diversity(name)) for name in ("spread", "modes_kept"))
        if modes is not None:
            several = " (and all modes, at so many of the observations that have several)"
        if spread is not None:
            kept = f" ({percent(modes.middle, 0)})" if modes is not None else ""
            parts.append(f"{percent(spread.middle, 0)}{kept} with {clean(chain[-1].way)}")
    over = (
        f"After the last round endpoints at one step keep of the first teacher's spread over noise{several}"
    )
    return f"{over} {counted(parts)}." if parts else ""


def _solved(study: Study) -> str:
    """Success of the first and the last round at one step."""
    parts = []
    for chain in study.chains:
        rows = [success(study, arm) for arm in (chain if len(chain) == 1 else [chain[0], chain[-1]])]
        if all(rows):
            parts.append(
                f"{' -> '.join(percent(row.rate, 1) for row in rows if row)} with {clean(chain[-1].way)}"
            )
    teacher = study.untrained
    own = (
        [r for r in teacher.success if (r.num_steps, r.group) == (teacher.num_steps, "all")]
        if teacher
        else []
    )
    beside = f" (the teacher as deployed {percent(own[0].rate, 1)})" if own else ""
    return f"Success at one step from the first round to the last: {counted(parts)}{beside}." if parts else ""
