"""Checks of settings name the field, the value and the rule."""

import math

import pytest

from chordflow.checks import check_filled, check_once, check_range
from chordflow.errors import UserError

BOUNDS = [
    ({"at_least": 1}, [1, 7.5], [0, -1], "at least 1"),
    ({"at_least": 0}, [0], [-1, -1e-9], "0 or more"),
    ({"above": 0}, [1e-9], [0, -1], "a number above 0"),
    ({"at_most": 5}, [5, -3], [5.1], "at most 5"),
    ({"below": 5}, [4.9], [5], "a number below 5"),
    ({"at_least": 0, "at_most": 1}, [0, 1], [-0.1, 1.1], "a number from 0 to 1"),
    ({"at_least": 0, "below": 1}, [0, 0.9], [1, -0.1], "a number from 0 up to but not 1"),
    ({"above": 0, "at_most": 1}, [1, 0.1], [0, 1.1], "a number above 0 and at most 1"),
    ({"above": 0, "below": 1}, [0.5], [0, 1], "a number above 0 and below 1"),
    ({}, [-1e300], [], "a finite number"),
]


@pytest.mark.parametrize(("bounds", "good", "bad", "rule"), BOUNDS, ids=[row[3] for row in BOUNDS])
def test_a_number_outside_its_bounds_is_refused(bounds, good, bad, rule):
    check_range("a.b", None, **bounds)
    check_range("a.b", good, **bounds)
    for value in [*bad, math.nan, math.inf, -math.inf]:
        with pytest.raises(UserError) as caught:
            check_range("a.b", value, **bounds, note=", or leave it out")
        assert str(caught.value) == f"a.b={value}: give {rule}, or leave it out."
        with pytest.raises(UserError, match=r"a\.b="):
            check_range("a.b", [*good, value], **bounds)


def test_lists_hold_each_thing_once():
    check_once("seeds", [0, 1], at_least=0)
    for values, shown in [([], "[]"), ([1, 1], "[1, 1]"), (["a", "a"], "[a,a]")]:
        with pytest.raises(UserError) as caught:
            check_once("seeds", values, note=", such as [0,1]")
        assert str(caught.value) == f"seeds={shown}: give at least one, each once, such as [0,1]."
    check_filled("steps", [1, 1])
    with pytest.raises(UserError, match=r"steps=\[\]: give at least one"):
        check_filled("steps", [])
    with pytest.raises(UserError, match=r"seeds=\[-1\]: give 0 or more"):
        check_once("seeds", [-1], at_least=0)
