"""What each of several processes draws, and what to halve where memory ends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Share
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.training.optimizers import SOAPConfig
from chordflow.training.steps import enough_memory_to_step
from distributed_worker import train_gaussian
from gaussian_policy import GaussianFlowPolicy
from gaussian_setup import AffineStudent, make_observations, make_policy


def gaussian_buffer(
    batch_size: int, *, num_observations: int = 8, noises: int = 4, uses: int | None = 1, observations: int = 8,
    start: int = 256, modes: int = 1, **spread: Any,
) -> CouplingBuffer:  # fmt: skip
    config = BufferConfig(num_observations, noises, uses, 4, start_observations=start)
    return CouplingBuffer(
        make_policy(num_modes=modes), make_observations(observations), CouplingConfig(num_steps=2), config, seed=3,
        batch_size=batch_size, **spread,
    )  # fmt: skip


def fill(buffer: CouplingBuffer, step: int) -> list[int]:
    list(buffer.fill(step))
    return buffer.held_blocks(step)


@given(
    processes=st.integers(1, 5), parts=st.integers(1, 3), batch_size=st.integers(1, 4), blocks=st.integers(5, 9),
    start=st.integers(1, 36), uses=st.sampled_from([1, 3, None]), step=st.integers(0, 40),
)  # fmt: skip
def test_every_process_draws_as_many_couplings_from_its_own_blocks(
    processes: int, parts: int, batch_size: int, blocks: int, start: int, uses: int | None, step: int
) -> None:
    same: dict[str, Any] = {"parts": parts, "num_observations": 4 * blocks, "uses": uses, "start": start}
    spread = [gaussian_buffer(batch_size, share=Share(rank, processes), **same) for rank in range(processes)]
    batches = []
    for buffer in spread:
        held = fill(buffer, step)
        assert [number % processes for number in held] == [buffer.share.index] * len(held)
        batches += [buffer.batch(step, part) for part in range(parts)]
    assert [len(batch.noise) for batch in batches] == [batch_size] * (processes * parts)
    assert sum(batch.weight for batch in batches) == pytest.approx(1.0)
    size = processes * parts * batch_size
    assert {batch.total for batch in batches} == {size}
    rows = torch.cat([torch.arange(size) if batch.rows is None else batch.rows for batch in batches])
    assert rows.tolist() == list(range(size))
    # No coupling is drawn twice, and what is drawn for one is drawn for it alone.
    assert len({tuple(noise.flatten().tolist()) for batch in batches for noise in batch.noise}) == size
    drawn = torch.cat([batch.per_row(draw(step)) for batch in batches])
    assert torch.equal(drawn, draw(step)(size))


def test_one_process_draws_evenly_from_the_whole_buffer() -> None:
    """The bits of a run in one process are what they were before processes drew apart."""
    buffer = gaussian_buffer(12, num_observations=16, observations=16)
    fill(buffer, 3)
    first, order = buffer.window.held(3).start, torch.randperm(64, generator=generator(3, "batch", 3))
    chosen = order[:12].sort().values
    expected = torch.stack([buffer._blocks[first + n // 16].noise[n % 16] for n in chosen.tolist()])
    assert torch.equal(buffer.batch(3).noise, expected)


def test_a_growing_window_begins_with_a_block_for_each_process_and_what_a_step_draws() -> None:
    for rank in (0, 1):
        assert fill(gaussian_buffer(3, share=Share(rank, 2), num_observations=32, start=1), 0) == [rank]
    # 40 couplings lie in three blocks of 16.
    assert fill(gaussian_buffer(40, num_observations=32, start=1), 0) == [0, 1, 2]


def draw(step: int) -> Any:
    return lambda n: torch.rand(n, generator=generator(step))


def test_fewer_blocks_than_processes_are_refused() -> None:
    refused = "buffer.num_observations=8 makes 2 blocks of 4, fewer than the 3 processes"
    with pytest.raises(UserError, match=refused):
        gaussian_buffer(1, share=Share(0, 3))
    refused = (
        "batch_size=9 makes a step of 18 couplings of each process, which is larger than the buffer's 16"
    )
    with pytest.raises(UserError, match=refused):
        gaussian_buffer(9, parts=2, share=Share(0, 2))


def short(*_: object, **__: object) -> Any:
    # A plain RuntimeError on a CPU, and refused before any memory is used.
    torch.empty(1 << 50)


HALVED: dict[str, tuple[Any, str, str]] = {
    "step": (
        AffineStudent, "velocity", "while 6 couplings were trained on at a time; give --batch_size=3 "
        "--gradient_accumulation_steps=4, which trains the same.",
    ),
    "solve": (
        GaussianFlowPolicy, "velocity", "while 6 couplings were solved by the teacher at a time; give --batch_size=3 "
        "--gradient_accumulation_steps=4, which trains the same.",
    ),
    "adam": (
        torch.optim.AdamW, "step",
        "for the state of the optimiser adamw; train less with --student.train, or use a larger device.",
    ),
    "encode": (
        GaussianFlowPolicy, "encode", "while 4 observations were prepared at a time; give --buffer.block_size=2.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HALVED)
def test_out_of_memory_names_what_to_halve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    where, method, said = HALVED[name]
    monkeypatch.setattr(where, method, short)
    with pytest.raises(UserError) as caught:
        train_gaussian(tmp_path / "run", batch_size=6, parts=2)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(("modes", "memory", "batch_size", "stored", "option"), [
    (1, 5_000, 6, False, "--buffer.num_observations=4."),
    (1, 5_000, 6, True, "--buffer.num_observations=4."),
    (20, 100_000, 6, False, "--batch_size=3 "),
    # Of half as many couplings there is no step.
    (1, 5_000, 24, False, "make a step smaller, which draws 24 couplings."),
])  # fmt: skip
def test_a_buffer_that_fills_the_memory_is_what_to_halve(
    monkeypatch: pytest.MonkeyPatch, modes: int, memory: int, batch_size: int, stored: bool, option: str
) -> None:
    buffer = gaussian_buffer(batch_size, uses=None, modes=modes)
    # Half of it is enough to tell.
    next(iter(buffer.fill(0)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=memory))
    if stored:
        monkeypatch.setattr(buffer, "source", object())
    with (
        pytest.raises(UserError, match=r"GiB on cpu for the buffer|trained on at a time") as caught,
        buffer.enough_memory(),
    ):
        short()
    assert option in str(caught.value)


def test_noises_that_do_not_fit_are_what_to_halve(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = gaussian_buffer(6, uses=None, noises=40)
    monkeypatch.setattr(GaussianFlowPolicy, "sample_noise", short)
    words = (
        "while 40 noises of every observation were made at a time; give --buffer.noises_per_observation=20"
    )
    with pytest.raises(UserError, match=words), buffer.enough_memory():
        next(iter(buffer.fill(0)))


def test_soaps_matrices_are_what_to_halve() -> None:
    config, parameters = SOAPConfig(max_precondition_dim=64), [torch.zeros(48, 100), torch.zeros(7)]
    refused = pytest.raises(
        UserError, match=r"give --optimizer.max_precondition_dim=24 or --optimizer.type=adamw\.$"
    )
    with refused, enough_memory_to_step(config, parameters, torch.device("cpu")):
        short()
