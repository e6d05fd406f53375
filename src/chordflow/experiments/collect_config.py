"""Where the observations of couplings come from, as settings of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chordflow.checks import check_fields, check_range
from chordflow.errors import UserError


class ObservationSource(StrEnum):
    """Whose observations couplings are made for."""

    DATASET = "dataset"
    ROLLOUT = "rollout"


@dataclass
class CollectConfig:
    """Observations from episodes in an environment, with observations=rollout.

    Attributes:
        share: share of the observations that come from episodes, above 0 and at most 1; the rest is the dataset's.
        num_observations: observations that are collected at a time; the teacher acts before the first training step,
            the student as it then is from there on.
        passes: how often they are gone through before others are collected.
        between_share: share of the observations between two chunks that is kept, at random, beside those at which a
            chunk was asked for.
        batch_size: episodes side by side.
        num_workers: processes that hold the environments; 0 holds them in this one.
        seed: of the first episode, before a hundred thousand times the last two digits of the run's seed are added; the
            others follow. By default far from those of chordflow evaluate.
    """

    share: float = 0.5
    num_observations: int = 512
    passes: int = 1
    between_share: float = 0.1
    batch_size: int = 16
    num_workers: int = 0
    seed: int = 1_000_000_000

    def __post_init__(self) -> None:
        check_range(
            "collect.share", self.share, above=0, at_most=1, note=", or leave --observations=rollout out"
        )
        check_range("collect.between_share", self.between_share, at_least=0, at_most=1)
        check_fields(self, "collect.", "num_observations", "passes", "batch_size", at_least=1)
        check_fields(self, "collect.", "num_workers", "seed", at_least=0)


def check_source(source: ObservationSource, env: Any, collect: CollectConfig) -> None:
    """Makes sure that an environment is given where one is needed, and only there.

    Raises:
        UserError: if not.
    """
    if source == ObservationSource.ROLLOUT:
        if env is None:
            raise UserError(
                "observations=rollout needs an environment to run episodes in; name one with --env.type, or leave the "
                "option out."
            )
        return
    if env is not None:
        raise UserError(
            f"env.type={env.type}: an environment is used with --observations=rollout alone; give that as well, or "
            "leave the env options out."
        )
    if collect != CollectConfig():
        raise UserError(
            "collect: these options are about observations from episodes; give --observations=rollout and --env.type "
            "as well, or leave them out."
        )


def check_no_demonstrations(method: str, *, needs_actions: bool, store: str | None) -> None:
    """Makes sure that what trains on observations from episodes needs nothing that they lack.

    Raises:
        UserError: if it does.
    """
    if needs_actions:
        raise UserError(
            f"observations=rollout: method.type={method} with these settings trains on demonstrated actions, which "
            "episodes of a policy do not have; choose --method.type=reflow without real_data_share, or "
            "--observations=dataset."
        )
    if store is not None:
        raise UserError(
            f"observations=rollout: the couplings in couplings.path={store} were made on a dataset's observations; "
            "leave --couplings.path out, or --observations."
        )
