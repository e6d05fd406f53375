"""Which blocks are resident at a step: a window that grows and then slides, without a state of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chordflow.couplings.buffer import Window


def draws(window: Window, steps: int) -> dict[int, float]:
    """How often a coupling of each block is drawn in so many steps, on average."""
    found: dict[int, float] = {}
    for step in range(steps):
        held = window.held(step)
        for block in held:
            found[block] = found.get(block, 0.0) + window.step_size / (len(held) * window.per_block)
    return found


def test_a_window_grows_by_what_a_resident_coupling_was_drawn_and_then_slides() -> None:
    # 4 blocks of 8 couplings, 4 uses: one more after every use of those that are there, at 8 draws a step.
    window = Window(num_blocks=4, start_blocks=1, per_block=8, step_size=8, uses=4)
    held = [window.held(step) for step in range(15)]
    # One block is used once in a step, two in two steps, three in three; four in four, and the oldest leaves.
    assert [(blocks.start, blocks.stop) for blocks in held] == [
        (0, 1), (0, 2), (0, 2), (0, 3), (0, 3), (0, 3), (0, 4), (0, 4), (0, 4), (0, 4), (1, 5), (1, 5), (1, 5),
        (1, 5), (2, 6),
    ]  # fmt: skip


def test_a_window_that_begins_whole_slides_from_the_first_step() -> None:
    window = Window(num_blocks=3, start_blocks=3, per_block=8, step_size=8, uses=3)
    assert [window.held(step).start for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert all(len(window.held(step)) == 3 for step in range(7))


def test_without_replacement_all_blocks_are_there_from_the_beginning() -> None:
    window = Window(num_blocks=5, start_blocks=2, per_block=8, step_size=8, uses=None)
    assert {window.held(step) for step in (0, 1, 10**6)} == {range(5)}


@given(
    num_blocks=st.integers(1, 12),
    start=st.integers(1, 12),
    per_block=st.integers(1, 300),
    uses=st.integers(1, 16),
    step_size=st.integers(1, 300),
    step=st.integers(0, 10**12),
)
def test_a_window_never_shrinks_turns_back_or_outgrows_itself(
    num_blocks: int, start: int, per_block: int, uses: int, step_size: int, step: int
) -> None:
    window = Window(num_blocks, min(start, num_blocks), per_block, step_size, uses)
    assert window.held(0) == range(window.start_blocks)
    now, then = window.held(step), window.held(step + 1)
    assert len(now) <= len(then) <= num_blocks
    assert now.start <= then.start
    # The first leaves only when the window is whole.
    assert now.start == 0 or len(now) == num_blocks


@pytest.mark.parametrize(("num_blocks", "start", "uses"), [(16, 2, 12), (32, 4, 6), (8, 8, 5), (10, 1, 3)])
def test_a_coupling_is_drawn_as_often_as_asked_while_the_window_grows(
    num_blocks: int, start: int, uses: int
) -> None:
    window = Window(num_blocks, start, per_block=1000, step_size=10, uses=uses)
    steps = 3 * num_blocks * uses * 100
    found = draws(window, steps)
    gone = range(window.held(steps - 1).start)
    assert len(gone) > num_blocks
    assert [found[block] for block in gone if block >= start] == pytest.approx(
        [uses] * (len(gone) - start), rel=0.03
    )
    # Those of the beginning leave one after the other, so that all but the last one of them go early.
    early = [uses * (1 - (start - 1 - block) / num_blocks) for block in range(start)]
    assert [found[block] for block in range(start)] == pytest.approx(early, rel=0.03)
