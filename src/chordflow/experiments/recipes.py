"""Settings of training that go together, by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from chordflow.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A named set of settings.

    Attributes:
        overrides: settings of `chordflow reflow` that differ from its defaults, nested.
    """

    overrides: dict[str, Any]

    def kept(self, settings: dict[str, Any]) -> bool:
        """Whether settings of `chordflow reflow`, nested, hold all that the recipe sets."""
        return _holds(settings, self.overrides)


def _holds(settings: dict[str, Any], part: dict[str, Any]) -> bool:
    return all(
        _holds(settings[name], value) if isinstance(value, dict) else settings[name] == value
        for name, value in part.items()
    )


RECIPES: dict[str, Recipe] = {
    # A student for any number of steps; the defaults.
    "all_steps": Recipe({"method": {"type": "reflow"}}),
    # The most exact student at one step, and for that alone.
    "one_step": Recipe(
        # What decides its error is the boundary between modes, where only more couplings help.
        {"method": {"type": "endpoint"}, "buffer": {"noises_per_observation": 6, "uses_per_coupling": 3}},
    ),
}
"""chordflow's own recipes, by name."""


def recipe(name: str) -> Recipe:
    """A recipe of chordflow's own.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f"did you mean {near[0]}?" if near else f"choose {' or '.join(RECIPES)}."
        raise UserError(f"recipe={name}: there is no such recipe; {meant}")
    return RECIPES[name]
