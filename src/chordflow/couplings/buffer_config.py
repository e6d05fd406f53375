"""How many couplings are kept in memory and how long, as settings of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from chordflow.checks import check_fields, check_range


@dataclass
class BufferConfig:
    """How many couplings are kept and how long.

    Attributes:
        num_observations: observations in the whole buffer.
        noises_per_observation: noises that share one encoded observation, on average.
        uses_per_coupling: how often a coupling is trained on, on average, before it is replaced; null fills the
            whole buffer before the first step and never replaces any.
        block_size: observations that are encoded together, and replaced together.
        adaptive_share: share of the noises that goes to the observations in proportion to how far their
            endpoints spread, where a policy has to decide; the rest, at least two each, goes to all alike, so that of
            1 or 2 noises_per_observation none is left for it.
        start_observations: observations with which training begins, at least as many as a step draws from; more are
            added as it goes on, until there are num_observations. Not used where uses_per_coupling is null.
        path_points: states between noise and endpoint that are kept of each of the teacher's trajectories, evenly
            spread over its solver's steps, where a method trains on them; by default all.
    """

    num_observations: int = 512
    noises_per_observation: int = 4
    uses_per_coupling: int | None = 12
    block_size: int = 64
    adaptive_share: float = 0.5
    start_observations: int = 64
    path_points: int | None = None

    def __post_init__(self) -> None:
        names = ("num_observations", "noises_per_observation", "block_size", "start_observations")
        check_fields(self, "buffer.", *names, at_least=1)
        check_range("buffer.path_points", self.path_points, at_least=1, note=", or leave it out for all")
        check_range(
            "buffer.uses_per_coupling",
            self.uses_per_coupling,
            at_least=1,
            note=", or null for couplings that are never replaced",
        )
        check_range("buffer.adaptive_share", self.adaptive_share, at_least=0, at_most=1)

    @property
    def even_noises(self) -> int:
        """Noises that every observation gets."""
        if self.adaptive_share == 0.0:
            return self.noises_per_observation
        even = round(self.noises_per_observation * (1.0 - self.adaptive_share))
        return min(self.noises_per_observation, max(2, even))

    @property
    def sharing(self) -> str:
        """How the noises are shared out among the observations, for the user; empty where all get the same by wish."""
        noises, even = self.noises_per_observation, self.even_noises
        if even < noises:
            return f" ({even} each, {noises - even} where endpoints spread)"
        if self.adaptive_share > 0.0:
            return f" (all alike: of {noises}, buffer.adaptive_share={self.adaptive_share:g} has none to share out)"
        return ""
