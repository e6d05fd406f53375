"""What a robot does while a chunk is being made: inference delay, injected in control steps.

Work goes in rounds of K = `n_action_steps` actions. A chunk c that is asked for at the beginning of a round
arrives d control steps later; prev is the chunk before it. Both count from the present of the observation that
they were made from: where a policy also predicts actions of the past, these are left out.

- none: c[0:K], as if no time passed.
- sync: the robot waits for d steps, then c[0:K].
- async: prev[K:K+d] while the robot continues, then c[d:K], which belongs to those instants. The first chunk is
  waited for outside the episode: c[0:K].
- rtc: as async, with the new chunk made by real-time chunking (Black et al. 2025, arXiv 2506.07339) from what
  is left over of the old one, prev[K:].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chordflow.errors import UserError
from chordflow.policies import ChunkSpec
from chordflow.results.episodes import DelayMode

Hold = Literal["zeros", "last"]


@dataclass(frozen=True)
class Execution:
    """How chunks are executed.

    Attributes:
        mode: see the module.
        delay: d, control steps between asking for a chunk and having it; 0 with mode none.
        hold: what a waiting robot (sync) is sent: zeros, which stand still where actions are moves, or the last
            action again (zeros before the first), where they are positions.
        max_guidance_weight: of real-time chunking (rtc); by default the one that fits the number of steps.
    """

    mode: DelayMode = "none"
    delay: int = 0
    hold: Hold = "zeros"
    max_guidance_weight: float | None = None

    @property
    def overlaps(self) -> bool:
        """Whether the robot continues with the old chunk meanwhile."""
        return self.mode in ("async", "rtc")

    def actions_needed(self, executed: int) -> int:
        """Leading actions of a chunk that may be sent to the robot; `executed` is K."""
        return executed + self.delay if self.overlaps else executed

    def check(self, chunk: ChunkSpec, executed: int) -> None:
        """Raises UserError for a delay that chunks of this size and K do not bridge."""
        if self.overlaps and self.delay > executed:
            raise UserError(
                f"delay is {self.delay}, but a new chunk is requested every {executed} actions (n_action_steps); "
                f"choose a delay of at most {executed}."
            )
        if self.actions_needed(executed) > chunk.num_usable:
            raise UserError(
                f"n_action_steps is {executed} and delay {self.delay}, but a chunk has {chunk.usable}; "
                f"together they must not exceed it."
            )


NO_DELAY = Execution()


def round_actions(
    execution: Execution,
    executed: int,
    chunk: NDArray[np.float32],
    previous: NDArray[np.float32] | None,
    last: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], int]:
    """The actions (N, A) of one round of N executed actions, and how many of them come before the new chunk's.

    Args:
        execution: how.
        executed: K.
        chunk: the new chunk's leading actions (at least K, or K + d where rounds overlap; A).
        previous: the old chunk's, likewise; None in the first round.
        last: the last executed action (A,); None before the first.
    """
    delay = execution.delay
    if execution.mode == "sync" and delay:
        held = last if execution.hold == "last" and last is not None else np.zeros_like(chunk[0])
        return np.concatenate([np.repeat(held[None], delay, axis=0), chunk[:executed]]), delay
    if execution.overlaps and delay and previous is not None:
        return np.concatenate([previous[executed : executed + delay], chunk[delay:executed]]), delay
    return chunk[:executed], 0
