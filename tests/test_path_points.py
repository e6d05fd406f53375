"""Points on the teacher's trajectory: which states a buffer keeps, and what reflow learns from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders import parse_reflow as parse
from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig, Needs
from chordflow.errors import UserError
from chordflow.experiments.rounds import reflow_rounds
from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.policies import VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.methods.base import chosen_rows
from chordflow.training.times import UniformTimes
from demonstrations import make_demonstrations
from gaussian_policy import GaussianConfig
from gaussian_setup import AffineStudent, euler, make_policy

PATHS = Needs(paths=True)


def batch_of(
    needs: Needs = PATHS, coupling: CouplingConfig | None = None, points: int | None = None
) -> CouplingBatch:
    policy = make_policy(std=0.3)
    buffer = CouplingBuffer(
        policy, make_demonstrations(policy, 8), coupling or euler(8),
        BufferConfig(8, 4, None, 4, path_points=points), seed=3, batch_size=8, needs=needs,
    )  # fmt: skip
    list(buffer.fill(0))
    return buffer.batch(0)


@pytest.mark.parametrize(
    ("points", "steps"), [(None, range(8)), (7, range(8)), (3, [0, 2, 4, 6]), (1, [0, 4]), (2, [0, 2, 5])]
)
def test_a_buffer_keeps_as_many_states_as_asked_evenly_spread(points: int | None, steps: list[int]) -> None:
    whole, kept = batch_of().travelled(), batch_of(points=points).travelled()
    assert torch.equal(kept.states, whole.states[:, list(steps)])
    assert kept.times.tolist() == [1 - step / 8 for step in steps]


def test_states_lie_on_the_grid_of_the_solver() -> None:
    path = batch_of(coupling=CouplingConfig("adams_bashforth", 4, grid_power=2.0)).travelled()
    assert path.times.tolist() == pytest.approx([1.0, 9 / 16, 1 / 4, 1 / 16])


def test_fewer_states_take_less_memory() -> None:
    policy = make_policy()
    sizes = []
    for needs, points in ((PATHS, None), (PATHS, 1), (Needs(), 1)):
        buffer = CouplingBuffer(
            policy, make_demonstrations(policy, 8), euler(8),
            BufferConfig(8, 4, None, 4, path_points=points), seed=3, batch_size=8, needs=needs,
        )  # fmt: skip
        list(buffer.fill(0))
        sizes.append(buffer.num_bytes)
    states = 32 * 4 * 4 * 4
    assert sizes[0] - sizes[1] == 6 * states
    assert sizes[1] - sizes[2] == 2 * states


def test_states_that_a_solver_does_not_pass_through_are_refused() -> None:
    with pytest.raises(UserError, match=r"buffer.path_points=8: coupling.num_steps=8 passes through 7"):
        batch_of(points=8)
    with pytest.raises(UserError, match=r"coupling.num_steps=1: .*give at least 2"):
        batch_of(coupling=euler(1))
    given = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=out", "--buffer.path_points=2"]
    with pytest.raises(UserError, match=r"buffer.path_points=2: with these settings method reflow does not"):
        reflow_rounds(parse(given)[0], [])
    with pytest.raises(UserError, match=r"buffer.path_points=0: give at least 1"):
        BufferConfig(path_points=0)
    # Where no method asks for them, nothing is kept and nothing can be wrong.
    assert batch_of(Needs(), euler(1), points=8).path is None
    with pytest.raises(UserError, match=r"method.path_share=1.0"):
        ReflowMethodConfig(path_share=1.0)


@torch.no_grad()
@pytest.mark.parametrize("real_share", [0.0, 0.3])
def test_a_share_of_reflow_starts_on_the_trajectory(real_share: float) -> None:
    student = AffineStudent(GaussianConfig())
    method = ReflowMethodConfig(
        times=UniformTimes(at_noise=0.4), path_share=0.5, real_data_share=real_share
    ).build()
    assert method.needs == Needs(paths=True, actions=real_share > 0)
    batch = batch_of(method.needs)
    assert batch.context is not None
    loss = method.loss(VelocityModule(student), batch, generator(7))
    drawn, path = generator(7), batch.travelled()
    t = laws.PointMassMixture(weight=0.4).sample(8, drawn)
    real = torch.zeros(8, dtype=torch.bool)
    if real_share:
        real = chosen_rows(batch, real_share, drawn)
        theirs = laws.Beta().sample(8, drawn)
    entered = chosen_rows(batch, 0.5, drawn)
    point = torch.randint(1, 8, (8,), generator=drawn)
    values, kinds = [], set()
    for row in range(8):
        noise, end, valid = batch.noise[row], batch.endpoint[row], torch.ones(4, 4).bool()
        time = t[row]
        x_t, target = time * noise + (1 - time) * end, noise - end
        if real[row]:
            shown, time = batch.demonstrated(), theirs[row]
            noise, end, valid = shown.noise[row], shown.actions[row], shown.valid[row]
            x_t, target = time * noise + (1 - time) * end, noise - end
        elif entered[row]:
            time = path.times[point[row]]
            x_t = path.states[row, point[row]]
            target = (x_t - end) / time
        kinds.add("real" if real[row] else "path" if entered[row] else "chord")
        v_t = student.velocity(x_t[None], time.reshape(1), batch.context.index(torch.tensor([row])))[0]
        values.append((v_t - target)[valid].square().mean())
    assert {"path", "chord"} <= kinds
    torch.testing.assert_close(loss, torch.stack(values).mean())


def test_no_share_is_reflow_as_it_was() -> None:
    """The same draws from the same generator, whether or not a path is at hand."""
    student, batch = AffineStudent(GaussianConfig()), batch_of()
    asked: list[Tensor] = []

    def velocity(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
        asked.extend([x_t, t])
        return VelocityModule(student)(x_t, t, context=batch.context, batch=None)

    ReflowMethodConfig().build().loss(velocity, batch, generator(7))
    t = laws.PointMassMixture(weight=0.5).sample(8, generator(7))
    assert torch.equal(asked[1], t)
    t = t[:, None, None]
    assert torch.equal(asked[0], t * batch.noise + (1 - t) * batch.endpoint)
