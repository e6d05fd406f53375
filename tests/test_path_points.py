"""Points on the teacher's trajectory: which states a buffer keeps, and what reflow learns from them."""

import pytest
import torch

from builders import parse_reflow as parse
from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig, Needs
from chordflow.errors import UserError
from chordflow.experiments.rounds import reflow_rounds
from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.policies import VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.methods.base import chosen_rows
from demonstrations import make_demonstrations
from gaussian_policy import GaussianConfig
from gaussian_setup import AffineStudent, euler, make_policy

PATHS = Needs(paths=True)


def buffer_of(needs: Needs, coupling: CouplingConfig, points: int | None) -> CouplingBuffer:
    policy = make_policy(std=0.3)
    buffer = CouplingBuffer(
        policy, make_demonstrations(policy, 8), coupling, BufferConfig(8, 4, None, 4, path_points=points), seed=3,
        batch_size=8, needs=needs,
    )  # fmt: skip
    list(buffer.fill(0))
    return buffer


def batch_of(
    needs: Needs = PATHS, coupling: CouplingConfig | None = None, points: int | None = None
) -> CouplingBatch:
    return buffer_of(needs, coupling or euler(8), points).batch(0)


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
    sizes = [buffer_of(n, euler(8), p).num_bytes for n, p in ((PATHS, None), (PATHS, 1), (Needs(), 1))]
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
@pytest.mark.parametrize(("path_share", "real_share"), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.3)])
def test_the_loss_of_reflow_is_that_of_chords_of_entered_paths_and_of_real_data(
    path_share: float, real_share: float
) -> None:
    student = AffineStudent(GaussianConfig())
    method = ReflowMethodConfig(path_share=path_share, real_data_share=real_share).build()
    assert method.needs == Needs(paths=path_share > 0, actions=real_share > 0)
    batch = batch_of(method.needs)
    loss = method.loss(VelocityModule(student), batch, generator(7))
    drawn, none = generator(7), torch.zeros(8, dtype=torch.bool)
    # By default half of all times are exactly at noise.
    t, real, entered = laws.PointMassMixture(weight=0.5).sample(8, drawn), none, none
    if real_share:
        real, theirs = chosen_rows(batch, real_share, drawn), laws.Beta().sample(8, drawn)
    if path_share:
        entered, point = chosen_rows(batch, path_share, drawn), torch.randint(1, 8, (8,), generator=drawn)
    values, kinds = [], set()
    for row in range(8):
        noise, end, time, valid = batch.noise[row], batch.endpoint[row], t[row], torch.ones(4, 4).bool()
        if real[row]:
            shown, time = batch.demonstrated(), theirs[row]
            noise, end, valid = shown.noise[row], shown.actions[row], shown.valid[row]
        x_t, target = time * noise + (1 - time) * end, noise - end
        if entered[row] and not real[row]:
            path = batch.travelled()
            time, x_t = path.times[point[row]], path.states[row, point[row]]
            target = (x_t - end) / time
        kinds.add("real" if real[row] else "path" if entered[row] else "chord")
        v_t = student.velocity(x_t[None], time.reshape(1), batch.context.index(torch.tensor([row])))[0]
        values.append((v_t - target)[valid].square().mean())
    shares = {"chord": 1.0, "path": path_share, "real": real_share}
    assert {kind for kind, share in shares.items() if share > 0} == kinds
    assert len(set(t.tolist())) > 2
    torch.testing.assert_close(loss, torch.stack(values).mean())
