"""Which blocks are resident at a step: a window that grows and then slides, without a state of its own."""

import math
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig
from chordflow.couplings import buffer as buffer_module
from chordflow.couplings.blocks import Block
from chordflow.couplings.buffer import Window
from chordflow.errors import UserError
from gaussian_setup import make_observations, make_policy


@pytest.mark.parametrize(("num_blocks", "start", "uses", "held"), [
    # One more after every use of those that are there: one block is used once in a step, two in two steps, three
    # in three; four in four, and the oldest leaves.
    (4, 1, 4, [(0, 1), *[(0, 2)] * 2, *[(0, 3)] * 3, *[(0, 4)] * 4, *[(1, 5)] * 4, (2, 6)]),
    # Whole from the beginning, it slides.
    (3, 3, 3, [*[(0, 3)] * 3, *[(1, 4)] * 3, (2, 5)]),
    # Nothing is ever replaced.
    (5, 2, None, [(0, 5)] * 7),
])  # fmt: skip
def test_a_window_grows_by_what_a_resident_coupling_was_drawn_and_then_slides(
    num_blocks: int, start: int, uses: int | None, held: list[tuple[int, int]]
) -> None:
    window = Window(num_blocks, start, per_block=8, step_size=8, uses=uses)
    assert [window.held(step) for step in range(len(held))] == [range(*bounds) for bounds in held]
    assert uses is not None or window.held(10**6) == range(num_blocks)


@given(
    num_blocks=st.integers(1, 12), start=st.integers(1, 12), per_block=st.integers(1, 300), uses=st.integers(1, 16),
    step_size=st.integers(1, 300), step=st.integers(0, 10**12),
)  # fmt: skip
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


def buffer_of(*sizes: int, **more: int) -> CouplingBuffer:
    policy = make_policy(horizon=1, padded_dim=1, action_dim=1, state_dim=1)
    coupling, config = CouplingConfig(num_steps=1), BufferConfig(*sizes, **more)
    return CouplingBuffer(policy, make_observations(50, 1), coupling, config, seed=0, batch_size=16)


@pytest.mark.parametrize("uses", [1, 3, 8])
@pytest.mark.parametrize("start", [1, 4])
def test_a_coupling_is_used_about_as_often_as_asked(uses: int, start: int) -> None:
    buffer = buffer_of(40, 2, uses, 10, start_observations=10 * start)
    drawn: Counter[float] = Counter()
    blocks: dict[int, list[float]] = {}
    last = 120 * uses
    for step in range(last):
        list(buffer.fill(step))
        blocks |= {number: block.noise.flatten().tolist() for number, block in buffer._blocks.items()}
        drawn.update(buffer.batch(step).noise.flatten().tolist())
    # Blocks of the first filling leave early, and those still resident have not had their time.
    whole = range(start, buffer.window.held(last - 1).start)
    counts = torch.tensor([[drawn[noise] for noise in blocks[number]] for number in whole]).double()
    assert len(counts) > 40
    assert float(counts.mean()) == pytest.approx(uses, rel=0.05)
    # A draw without replacement at every step: close to binomial, no coupling is favoured.
    assert float(counts.var()) < 1.2 * uses
    assert float((counts.mean(dim=1) - uses).abs().max()) < 5 * math.sqrt(uses / 20)


def test_the_next_block_is_made_in_the_background_with_the_same_bits_and_none_past_the_last_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_by: dict[int, str] = {}

    def run(start: int = 0) -> list[torch.Tensor]:
        buffer = buffer_of(40, 2, 2, 10)
        make = buffer.make

        def watched(numbers: list[int]) -> Iterator[Block]:
            made_by.update(dict.fromkeys(numbers, threading.current_thread().name))
            return make(numbers)

        monkeypatch.setattr(buffer, "make", watched)
        drawn = []
        for step in range(start, 20):
            list(buffer.fill(step, last=19))
            drawn.append(buffer.batch(step).endpoint)
        assert max(made_by) == buffer.window.held(19).stop - 1
        return drawn

    plain = run()
    assert set(made_by.values()) == {"MainThread"}
    monkeypatch.setattr(buffer_module, "ALLOWED", 2)
    for start in (0, 7):
        made_by.clear()
        assert all(map(torch.equal, run(start), plain[start:]))
        assert len([name for name in made_by.values() if name != "MainThread"]) > 3


def test_a_fault_in_the_background_is_told_when_its_block_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "ALLOWED", 2)
    buffer = buffer_of(20, 2, 2, 10)
    list(buffer.fill(0))
    buffer.teacher.module.state_proj.weight.data.fill_(torch.nan)
    needed = next(step for step in range(100) if buffer.window.held(step).start > 0)
    for step in range(needed):
        list(buffer.fill(step, last=100))
    with pytest.raises(UserError, match="endpoints are NaN"):
        list(buffer.fill(needed, last=100))
    buffer.wait()
