"""Checks of settings; each raises a `UserError` whose sentence names the field, its value and the rule.

Such as "buffer.block_size=0: give at least 1.", "seeds=[1, 1]: give at least one, each once, such as [0,1,2]." and
"delay.hold=first: choose zeros or last."
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import field, fields
from typing import Any, ClassVar, NotRequired, TypedDict, Unpack

from chordflow.errors import UserError


class Bounds(TypedDict):
    """Where a number may lie; `above` and `below` themselves are out of bounds.

    `note` follows the rule in the sentence, with its own comma or semicolon: how to leave the field out, or why the
    rule holds.
    """

    at_least: NotRequired[float]
    above: NotRequired[float]
    at_most: NotRequired[float]
    below: NotRequired[float]
    note: NotRequired[str]


class Checked:
    """Settings that check themselves as they are made: every `number` and what is given `once`, by its bounds.

    `PREFIX` is what their options begin with.
    """

    PREFIX: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            if "check" in one.metadata:
                one.metadata["check"](
                    self.PREFIX + one.name, getattr(self, one.name), **one.metadata["bounds"]
                )


def number[T](default: T, **bounds: Unpack[Bounds]) -> T:
    """A field of `Checked` settings: its default, and where the number, or each of a list of them, may lie."""
    return _field(default, check_range, bounds)


def once[T](default: list[T], **bounds: Unpack[Bounds]) -> list[T]:
    """A field of `Checked` settings: a list that holds something, and nothing twice, with bounds of its numbers."""
    return _field(default, check_once, bounds)


def _field[T](default: T, check: Callable[..., None], bounds: Bounds) -> T:
    metadata = {"check": check, "bounds": bounds}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def check_range(field: str, value: float | Sequence[float] | None, **bounds: Unpack[Bounds]) -> None:
    """Refuses a number outside its bounds, as well as infinity and NaN; of a list, each number is checked.

    Args:
        field: the option's whole name, such as `buffer.block_size`.
        value: None for an option that was left out.
        bounds: where the number may lie; none of them asks for a finite number.
    """
    numbers = [] if value is None else value if isinstance(value, Sequence) else [value]
    if not all(math.isfinite(number) and _within(number, bounds) for number in numbers):
        raise UserError(f"{field}={value}: give {_rule(bounds)}{bounds.get('note', '')}.")


def check_fields(config: Any, prefix: str, *names: str, **bounds: Unpack[Bounds]) -> None:
    """Checks several fields of a config, whose options begin with `prefix`, as `check_range` does."""
    for name in names:
        check_range(prefix + name, getattr(config, name), **bounds)


def check_once(field: str, values: Sequence[Any], **bounds: Unpack[Bounds]) -> None:
    """Refuses an empty list, a list that holds something twice, and numbers outside the bounds."""
    if not values or len(set(values)) < len(values):
        raise UserError(f"{field}={_shown(values)}: give at least one, each once{bounds.get('note', '')}.")
    if len(bounds) > ("note" in bounds):
        check_range(field, values, **bounds)


def check_filled(field: str, values: Sequence[Any], note: str = "") -> None:
    """Refuses an empty list."""
    if not values:
        raise UserError(f"{field}={values}: give at least one{note}.")


def check_choice(field: str, value: str | Sequence[str], known: Collection[str], note: str = "") -> None:
    """Refuses a name that is not among the known ones; of a list, each name is checked."""
    if any(name not in known for name in ([value] if isinstance(value, str) else value)):
        *others, last = known
        listed = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{field}={_shown(value)}: choose {listed}{note}.")


def _shown(value: Any) -> str:
    """A value as a command line takes it: names in a list without quotes."""
    names = isinstance(value, Sequence) and all(isinstance(name, str) for name in value)
    return f"[{','.join(value)}]" if names and not isinstance(value, str) else str(value)


def _within(number: float, bounds: Bounds) -> bool:
    return bounds.get("at_least", -math.inf) <= number <= bounds.get("at_most", math.inf) and bounds.get(
        "above", -math.inf
    ) < number < bounds.get("below", math.inf)


def _rule(bounds: Bounds) -> str:
    low, high = bounds.get("at_least"), bounds.get("at_most")
    above, below = bounds.get("above"), bounds.get("below")
    if high is None and below is None:
        if low is not None:
            return "0 or more" if low == 0 else f"at least {low}"
        return "a finite number" if above is None else f"a number above {above}"
    if low is None and above is None:
        return f"at most {high}" if below is None else f"a number below {below}"
    start = f"a number from {low}" if low is not None else f"a number above {above}"
    if below is not None:
        return f"{start} up to but not {below}" if low is not None else f"{start} and below {below}"
    return f"{start} to {high}" if low is not None else f"{start} and at most {high}"
