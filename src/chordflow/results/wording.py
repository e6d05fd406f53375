"""Numbers as a person reads them."""

import math

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def percent(fraction: float, decimals: int | None = None) -> str:
    """A fraction in percent, such as ``9.1 %``.

    Args:
        fraction: 0.091 for 9.1 %.
        decimals: Digits after the point; two significant digits by default.

    Returns:
        The text; what is not zero never reads as zero.
    """
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
    """A difference of rates in percentage points with its sign, such as ``-1.2``."""
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
    """``one step``, ``two untrained steps``."""
    words = (number(count), kind, "step" if count == 1 else "steps")
    return " ".join(word for word in words if word)
