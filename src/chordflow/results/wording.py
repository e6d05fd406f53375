"""Numbers as a person reads them."""

import math
import shlex
from collections.abc import Callable, Sequence

from chordflow.results.statistics import Estimate, Interval

STARTS_TRAINED_ON = "starts trained on"
"""The group of episodes that begin where observations for training were collected."""

STARTS_NOT_TRAINED_ON = "starts not trained on"

REPEATED_STARTS = "Some episodes begin alike: intervals and p count each start once."
UNRELIABLE = "timings are unreliable: the machine was busy"
"""What is printed in place of every figure of time."""

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def percent(fraction: float, decimals: int | None = None) -> str:
    """A fraction in percent, such as `9.1 %`, with two significant digits by default; only zero reads as zero."""
    value = 100 * fraction
    if value == 0:
        return "0 %"
    if decimals is None:
        # Two significant digits of 9.96 are 10: the rounded figure decides how many are shown.
        decimals = max(0, min(2, 1 - math.floor(math.log10(abs(float(f"{value:.2g}"))))))
    smallest = 10.0**-decimals
    if abs(value) < smallest / 2:
        return f"{'-' if value < 0 else ''}<{smallest:.{decimals}f} %"
    return f"{value:.{decimals}f} %"


def points(fraction: float) -> str:
    """A difference of rates in percentage points with its sign, such as `-1.2`."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def amount(value: float) -> str:
    """A figure in some unit, to three significant digits and without an exponent where that can be read."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def number(count: int) -> str:
    """A whole number, as a word up to ten."""
    return _WORDS[count] if 0 <= count < len(_WORDS) else str(count)


def steps(count: int, kind: str = "") -> str:
    """`one step`, `two untrained steps`."""
    words = (number(count), kind, "step" if count == 1 else "steps")
    return " ".join(word for word in words if word)


def counted(items: Sequence[object]) -> str:
    """`a, b and c`; nothing of an empty list."""
    texts = [str(item) for item in items]
    return " and ".join([*([", ".join(texts[:-1])] if len(texts) > 1 else []), *texts[-1:]])


def step_counts(counts: Sequence[int]) -> str:
    """`one step`, `1, 2 and 4 steps`."""
    return steps(counts[0]) if len(counts) == 1 else f"{counted(counts)} steps"


def span(interval: Interval | None, figure: Callable[[float], str]) -> str:
    """An interval behind a figure, such as ` [1.2, 3.4]`, or nothing; `figure` writes each end."""
    return "" if interval is None else f" [{figure(interval.low)}, {figure(interval.high)}]"


def estimate(value: Estimate, figure: Callable[[float], str] = amount) -> str:
    """A measure with its interval, such as `0.25 [0.20, 0.32]`."""
    return figure(value.value) + span(value.interval, figure)


def percentage(fraction: float) -> str:
    """A fraction in percent to one decimal and without the sign, for a column that has it: `91.0`."""
    return f"{100 * fraction:.1f}"


def p_value(p: float) -> str:
    """A p-value to three decimals; below that, `<.001`."""
    return "<.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """A time of three significant digits in the unit that suits it: `3.76 ms`, `1.20 s`, `5 min`."""
    if value == 0:
        return "0 s"
    if value < 1e-3:
        return f"{amount(1e6 * value)} µs"
    if value < 1:
        return f"{amount(1e3 * value)} ms"
    return f"{amount(value)} s" if value < 120 else duration(value)


def duration(value: float) -> str:
    """A time in whole seconds, minutes or hours: `45 s`, `5 min`, `2 h 10 min`."""
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in the unit that suits them: `62 MB`, `1.8 GB`."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def plural(count: int, noun: str) -> str:
    """`1 episode`, `3 episodes`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """A sentence's beginning."""
    return text[:1].upper() + text[1:]


def clean(text: str) -> str:
    """One line of printable text: names may hold line breaks, terminal codes and marks that turn the writing."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def command_lines(command: list[str]) -> str:
    """The command as one would type it, an option a line."""
    words = [shlex.quote(clean(word)) for word in command]
    begin = next((i for i, word in enumerate(words) if word.startswith(("--", "'--"))), len(words))
    return " \\\n    ".join([" ".join(words[:begin]), *words[begin:]])
