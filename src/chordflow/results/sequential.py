"""Paired episodes looked at early: a test of non-inferiority that stays valid whenever one stops.

A gambler bets against a hypothesis on the paired difference D = first - second, -1, 0 or 1 per episode. Were the
hypothesis true, no way of betting would be expected to gain, and capital ever reaching 1/a has at most probability
a (Ville 1939): capital is evidence, at any time, however often one looks (Waudby-Smith and Ramdas 2023, "Estimating
means of bounded random variables by betting", JRSS B 86:1). Against "the mean of D is at most u" the capital is the
product over pairs of `1 - f + f (1 + D) / (1 + u)`, with a fraction f at stake; it falls as u rises, so all u whose
capital stays below 1/a form an interval, and these intervals are a confidence sequence.

Which fraction is best depends on how often the policies disagree, which is not known beforehand. So the first
capital is split over fixed fractions, each grows by itself, and their sum is the evidence ("diversified Kelly
betting" there; Cover 1991, "Universal portfolios"): money moves by itself to the fraction that fits. It is a bet that
depends on the past alone, and the sum depends on nothing but the counts of -1, 0 and 1.

Pairs may differ in difficulty by a pattern that repeats, such as one episode of each of T tasks under each seed, and
the hypothesis may speak of the mean over tasks. Then capital is no more than fair over whole rounds of T (the
product of independent factors expects the product of their means, at most the T-th power of their average), and is
looked at after whole rounds alone: `look_every`.

Shapes: B pairs in one update, K fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from chordflow.results.statistics import Decision, FloatArray

METHOD = "betting"

FRACTIONS = np.array([0.99, 0.6, 0.35, 0.2, 0.1, 0.05, 0.025])
"""Fractions at stake, shape (K,): for policies that always agree the first, for those that rarely do the last."""

SHARES = np.array([0.20, 0.25, 0.25, 0.15, 0.08, 0.04, 0.03])
"""Share of the first capital behind each, shape (K,): most of it where paired policies usually are."""

ALPHA = 0.05
"""Chance of a wrong decision, both sides together."""

MIN_EPISODES = 20
"""Pairs before which nothing is decided."""

_LARGEST_LOG = 700.0
"""Capital above exp(700) overflows, and is no more of an argument."""


@dataclass(frozen=True)
class SequentialDecision:
    """The paired evidence at the pair that decided, or at the last one.

    Attributes:
        method: kind of the test.
        margin: how much lower the first policy's success may be, a fraction.
        alpha: chance of a wrong decision, both sides together, over all looks.
        episodes: paired episodes counted; those after the deciding one are not.
        decision: `non-inferior` or `inferior` where the evidence against the contrary reached 2 / alpha.
        low: lower end of the confidence sequence for the difference, first less second: it holds with probability
            1 - alpha at all times at once, so also where one stopped early.
        high: upper end.
        e_non_inferior: capital won against "worse by the margin or more": evidence for non-inferiority.
        e_inferior: capital won against "worse by the margin or less": evidence for inferiority.
        looks: pairs at which a decision could have fallen.
        stopped_early: whether it was decided before the largest number of episodes.
    """

    method: str
    margin: float
    alpha: float
    episodes: int
    decision: Decision
    low: float
    high: float
    e_non_inferior: float
    e_inferior: float
    looks: int
    stopped_early: bool


class SequentialTest:
    """Non-inferiority of the first policy at a margin, decided as soon as paired episodes suffice.

    Pairs are looked at in their order, so the outcome does not depend on how many come in one update.

    Args:
        margin: how much lower the first policy's success may be, a fraction between 0 and 1, chosen before looking at
            outcomes.
        alpha: chance of a wrong decision, both sides together, below 1.
        min_episodes: nothing is decided before so many pairs, at least 1.
        max_episodes: pairs beyond this are not counted, at least `min_episodes`; None for no end.
        look_every: decisions fall after multiples of so many pairs: the number of tasks, where pairs come as one of
            each task in turn.
    """

    def __init__(
        self,
        margin: float,
        *,
        alpha: float = ALPHA,
        min_episodes: int = MIN_EPISODES,
        max_episodes: int | None = None,
        look_every: int = 1,
    ) -> None:
        self.margin, self.alpha, self.look_every = margin, alpha, look_every
        self.min_episodes, self.max_episodes = min_episodes, max_episodes
        self._counts = (0, 0, 0)
        self._decision: Decision = "undecided"

    @property
    def finished(self) -> bool:
        """Whether further pairs would change nothing: it is decided, or the last pair was counted."""
        return self._decision != "undecided" or sum(self._counts) == self.max_episodes

    def update(self, first: Sequence[bool], second: Sequence[bool]) -> SequentialDecision:
        """Count further pairs, in the order of their seeds; those after the end are left out.

        Args:
            first: whether the first policy solved each episode, shape (B,), at least one.
            second: the same of the second policy, shape (B,).

        Returns:
            The evidence so far.
        """
        if not self.finished:
            room = None if self.max_episodes is None else self.max_episodes - sum(self._counts)
            d = np.asarray(first[:room], dtype=np.int64) - np.asarray(second[:room], dtype=np.int64)
            wins, ties, losses = (
                before + np.cumsum(d == x) for before, x in zip(self._counts, (1, 0, -1), strict=True)
            )
            better, worse = decided_at(wins, ties, losses, self.margin, self.alpha)
            stops = np.flatnonzero((better | worse) & self.looks_at(wins + ties + losses))
            last = stops[0] if stops.size else -1
            if stops.size:
                self._decision = "non-inferior" if better[last] else "inferior"
            self._counts = int(wins[last]), int(ties[last]), int(losses[last])
        return self.state()

    def state(self) -> SequentialDecision:
        """The evidence so far."""
        wins, ties, losses = self._counts
        episodes = wins + ties + losses
        decided = self._decision != "undecided"
        low, high = confidence_sequence(wins, ties, losses, alpha=self.alpha)
        return SequentialDecision(
            method=METHOD,
            margin=self.margin,
            alpha=self.alpha,
            episodes=episodes,
            decision=self._decision,
            low=low,
            high=high,
            e_non_inferior=_capital(log_capital(wins, ties, losses, -self.margin)),
            e_inferior=_capital(log_capital(losses, ties, wins, self.margin)),
            looks=max(0, episodes // self.look_every - (self.min_episodes - 1) // self.look_every),
            stopped_early=decided and (self.max_episodes is None or episodes < self.max_episodes),
        )

    def looks_at(self, episodes: ArrayLike) -> NDArray[np.bool_]:
        """Whether a decision may fall after so many pairs; numbers of any shape."""
        n = np.asarray(episodes)
        return np.asarray((n >= self.min_episodes) & (n % self.look_every == 0))


def log_capital(wins: ArrayLike, ties: ArrayLike, losses: ArrayLike, mean: float) -> FloatArray:
    """Log of the capital won against "the mean of D is at most `mean`"; it starts at 0.

    Swapping wins with losses and turning the mean's sign gives the capital against "at least".

    Args:
        wins: pairs with D = 1, counts of any shape.
        ties: pairs with D = 0.
        losses: pairs with D = -1.
        mean: above -1.

    Returns:
        The logarithm, of the shape to which the counts broadcast.
    """
    returns = [np.log1p(FRACTIONS * (gain / (1 + mean) - 1)) for gain in (2.0, 1.0, 0.0)]
    counts = [np.asarray(count, dtype=np.float64)[..., None] for count in (wins, ties, losses)]
    grown = sum(count * log_return for count, log_return in zip(counts, returns, strict=True))
    return np.asarray(logsumexp(grown, b=SHARES, axis=-1))


def decided_at(
    wins: ArrayLike, ties: ArrayLike, losses: ArrayLike, margin: float, alpha: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which counts of wins, ties and losses, of any shape, show non-inferiority, and which inferiority; none both.

    `alpha` is the chance of a wrong decision, half of it for each side.
    """
    threshold = np.log(2 / alpha)
    better = log_capital(wins, ties, losses, -margin) >= threshold
    worse = log_capital(losses, ties, wins, margin) >= threshold
    return better, worse


def confidence_sequence(wins: int, ties: int, losses: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Lower and upper end of an interval of the mean difference that holds at all times at once, but for `alpha`."""
    return _lower_end(wins, ties, losses, alpha), -_lower_end(losses, ties, wins, alpha)


def _lower_end(wins: int, ties: int, losses: int, alpha: float) -> float:
    """The mean at which the capital is 2 / alpha: below it, it is more."""

    def excess(mean: float) -> float:
        return float(log_capital(wins, ties, losses, mean)) - float(np.log(2 / alpha))

    lowest = -1 + 1e-9
    if excess(lowest) < 0:
        return -1.0
    # At the observed mean itself no fraction has gained, by concavity of the logarithm.
    observed = (wins - losses) / (wins + ties + losses)
    return float(brentq(excess, lowest, observed, xtol=1e-12))


def _capital(log_of_it: FloatArray) -> float:
    return float(np.exp(min(float(log_of_it), _LARGEST_LOG)))
