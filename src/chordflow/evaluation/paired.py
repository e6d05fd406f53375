"""Held-out observations and noises on which policies are solved, with a count of the work.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chordflow.checks import Checked, check_fields, check_filled, number
from chordflow.couplings import Observations
from chordflow.errors import UserError
from chordflow.evaluation.modes import MIN_ENDPOINTS
from chordflow.flow.curvature import Curvature, measure_curvature
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import SolverName, Velocity, get_solver
from chordflow.policies import Context, FlowPolicy
from chordflow.policies.exported import ExportedPolicy
from chordflow.results.actions import CurvatureRow, PolicyName
from chordflow.results.statistics import ratio_of_rms
from chordflow.threads import in_parallel

Progress = Callable[[int, int], None]
"""Called with the network evaluations done, and with their total."""


class Way(NamedTuple):
    """How the ODE is solved.

    Attributes:
        solver: by name.
        num_steps: its steps.
        grid_power: how they are graded; 1 is LeRobot's even steps.
    """

    solver: str
    num_steps: int
    grid_power: float = 1.0

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return get_solver(self.solver).nfe(self.num_steps)


@dataclass
class MeasureConfig(Checked):
    """How much is measured after training.

    Attributes:
        num_observations: held-out observations; fewer if the held-out episodes have fewer frames.
        noises_per_observation: noises for each; at least 16, from which modes are found.
        num_steps: solver steps to compare.
        solvers: solvers of the untrained policy, each at as many evaluations as Euler has steps. Euler, by which
            policies are run, is always among them.
        converged_num_steps: Euler steps of the teacher's converged ODE and of the grid for curvature; at
            least 100, and never less than twice the teacher's as deployed.
        converged_noises: noises of each observation that the converged ODE is solved for.
        gap_noises: noises of each observation on which steps and solvers are compared; by default all of them.
        batch_size: noises that go through the network together.
        latency_repeats: timed runs behind a latency.
        seed: of the observations and noises chosen.
    """

    PREFIX = "measure."

    num_observations: int = number(200, at_least=1)
    noises_per_observation: int = number(16, at_least=MIN_ENDPOINTS)
    num_steps: list[int] = number([1, 2, 4, 10], at_least=1)
    solvers: list[SolverName] = field(default_factory=lambda: ["euler", "midpoint"])
    converged_num_steps: int = number(100, at_least=100)
    converged_noises: int = number(4, at_least=1)
    gap_noises: int | None = number(None, at_least=1)
    batch_size: int = number(64, at_least=1)
    latency_repeats: int = number(30, at_least=1)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        most, note = self.noises_per_observation, " (measure.noises_per_observation)"
        check_fields(self, "measure.", "converged_noises", "gap_noises", at_most=most, note=note)
        check_filled("measure.num_steps", self.num_steps, note=", such as [1,2,4,10]")

    @property
    def compared_noises(self) -> int:
        """`gap_noises`, or all."""
        return self.gap_noises or self.noises_per_observation

    def fine_num_steps(self, deployed: int) -> int:
        """`converged_num_steps` for a teacher deployed at so many, against which its floor would be zero."""
        return max(self.converged_num_steps, 2 * deployed)


@dataclass(frozen=True)
class HeldOutSet:
    """Encoded observations with their noises.

    Attributes:
        contexts: by policy; several names share one object where their prefixes are equal.
        noise: (N, K, H, D).
        episodes: the episode that each observation is from, (N,).
        frames: its frame within the episode, (N,).
        tasks: its instruction.
        rows: its index among the observations that were chosen from.
    """

    contexts: dict[PolicyName, Context]
    noise: Tensor
    episodes: Tensor
    frames: Tensor
    tasks: list[str]
    rows: list[int]


def chosen_rows(observations: Observations, config: MeasureConfig) -> list[int]:
    """Which held-out frames are measured on, in ascending order."""
    count = min(config.num_observations, len(observations))
    chosen = torch.randperm(len(observations), generator=generator(config.seed, "held-out"))[:count]
    return [int(row) for row in chosen.sort().values]


@torch.no_grad()
def encode_held_out(
    policies: Mapping[PolicyName, FlowPolicy], observations: Observations, config: MeasureConfig
) -> HeldOutSet:
    """Chooses held-out frames, encodes them for every policy, and draws their noises by the first one's law.

    A policy that encodes as the first one does shares its contexts.
    """
    order = chosen_rows(observations, config)
    first = next(iter(policies.values()))
    reference = first.prefix_hash()
    encoders = {"": first} | {name: own for name, own in policies.items() if own.prefix_hash() != reference}
    parts: dict[str, list[Context]] = {name: [] for name in encoders}
    about: dict[str, list[Any]] = {"episode_index": [], "frame_index": [], "task": []}
    for items in observations.batches(order, min(config.batch_size, 64)):
        for name, policy in encoders.items():
            parts[name].append(policy.encode(policy.preprocess(items)))
        for key, values in about.items():
            values.extend(items[key])
    joined = {name: type(contexts[0]).concatenate(contexts) for name, contexts in parts.items()}
    noises = [
        first.sample_noise(config.noises_per_observation, generator(config.seed, "held-out noise", index))
        for index in order
    ]
    return HeldOutSet(
        contexts={name: joined[name if name in joined else ""] for name in policies},
        noise=torch.stack(noises).to(first.device),
        episodes=torch.stack(about["episode_index"]).flatten(),
        frames=torch.stack(about["frame_index"]).flatten(),
        tasks=about["task"],
        rows=order,
    )


def over_batches[T](
    policy: FlowPolicy,
    context: Context,
    noise: Tensor,
    batch_size: int,
    function: Callable[[Velocity, Tensor, Context], T],
    rows: Tensor | None = None,
) -> Iterator[tuple[slice, T]]:
    """Cuts N observations with noises (N, K, H, D) into network batches and calls a function for each.

    On a CPU several batches run at a time.

    Args:
        policy: the velocity.
        context: of the N observations, or of more where `rows` (N,) chooses among them.
        noise: of the N observations.
        batch_size: noises that go through the network together.
        function: of a velocity at fixed observations, their noises (n * K, H, D), and their context.
        rows: places in the context.

    Yields:
        The observations' slice, and what the function returned.
    """
    count, noises = noise.shape[:2]
    rows = torch.arange(count) if rows is None else rows
    size = max(1, batch_size // noises)
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def call(part: slice, stopped: threading.Event) -> T:
        repeated = context.index(rows[part]).repeat(noises)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if stopped.is_set():
                raise InterruptedError
            return policy.velocity(x, t, repeated)

        return function(velocity, noise[part].flatten(0, 1), repeated)

    yield from zip(parts, in_parallel(call, parts, policy.module), strict=True)


@torch.no_grad()
def solve(
    policy: FlowPolicy,
    context: Context,
    noise: Tensor,
    ways: Sequence[Way],
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda nfe: None,
    rows: Tensor | None = None,
) -> dict[Way, Tensor]:
    """Endpoints (N, K, H, D) of noises (N, K, H, D) by several ways, on the CPU; of an exported folder by its own.

    `on_batch` is called with the network evaluations that a batch takes, also where some are shared; the others are
    as in `over_batches`.
    """
    ends = {way: torch.empty(noise.shape, dtype=torch.float32) for way in ways}

    def solve_batch(velocity: Velocity, flat: Tensor, repeated: Context) -> list[Tensor]:
        if isinstance(policy, ExportedPolicy):
            return [policy.endpoints(repeated, flat)]
        remembered = Remembered(velocity)
        return [
            get_solver(way.solver).integrate(remembered, flat, way.num_steps, grid_power=way.grid_power).cpu()
            for way in ends
        ]

    for part, found in over_batches(policy, context, noise, batch_size, solve_batch, rows):
        for way, end in zip(ends, found, strict=True):
            ends[way][part] = end.unflatten(0, (-1, noise.shape[1])).float()
        on_batch(sum(way.nfe for way in ends))
    return ends


class Remembered:
    """A velocity that is not evaluated twice at the same state and time.

    Every solution of a batch starts from the same noises at t = 1, and the first states of several solvers
    coincide as well (midpoint's first middle is Euler's second state at twice the steps). They are compared
    bit by bit, so that no figure changes.
    """

    def __init__(self, velocity: Velocity) -> None:
        self._velocity = velocity
        self._known: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, H, D) at x (B, H, D) and t (B,), one time for all."""
        known = self._known.setdefault(float(t[0]), [])
        for state, v_t in known:
            if torch.equal(state, x):
                return v_t
        v_t = self._velocity(x, t)
        known.append((x, v_t))
        return v_t


class Work:
    """Solves on the held-out set and counts what is done.

    Args:
        held_out: observations, encoded for every policy that is solved, and noises.
        config: how much.
        on_progress: called with the network evaluations done, and with `total`.

    Attributes:
        total: network evaluations of all that is to be done, for the caller to set.
        done: of them.
    """

    def __init__(self, held_out: HeldOutSet, config: MeasureConfig, on_progress: Progress) -> None:
        self.held_out, self.config, self.on_progress = held_out, config, on_progress
        self.total, self.done = 0, 0

    def cost(self, nfe: int, noises: int | None = None, rows: Tensor | None = None) -> int:
        """Network evaluations of one pass over all batches, of some observations where `rows` names them."""
        count = len(self.held_out.noise if rows is None else rows)
        size = max(1, self.config.batch_size // (noises or self.config.noises_per_observation))
        return nfe * -(-count // size)

    def tick(self, nfe: int) -> None:
        """Counts evaluations that were done."""
        self.done += nfe
        self.on_progress(self.done, self.total)

    def solve(
        self,
        name: PolicyName,
        policy: FlowPolicy,
        ways: Sequence[Way],
        noises: int,
        rows: Tensor | None = None,
    ) -> dict[Way, Tensor]:
        """Endpoints (N, noises, H, D) by several ways.

        Raises:
            UserError: if one is not finite, unless just some observations are solved, whose places are `rows`.
        """
        context, noise = self.held_out.contexts[name], self.held_out.noise[:, :noises]
        noise = noise if rows is None else noise[rows]
        size = self.config.batch_size
        ends = solve(policy, context, noise, ways, batch_size=size, on_batch=self.tick, rows=rows)
        for way, found in ends.items() if rows is None else ():
            _require_finite(found, name, way)
        return ends

    def converge(self, name: PolicyName, policy: FlowPolicy) -> tuple[CurvatureRow, Tensor]:
        """Curvature on the fine grid, and the endpoints (N, converged_noises, H, D) that come with it.

        Raises:
            UserError: if one is not finite.
        """
        noise = self.held_out.noise[:, : self.config.converged_noises]
        steps, ends = self.config.converged_num_steps, torch.empty(noise.shape, dtype=torch.float32)
        total: Curvature | None = None

        def follow(velocity: Velocity, flat: Tensor, _: Context) -> tuple[Curvature, Tensor]:
            chunk = policy.chunk
            return measure_curvature(
                velocity, flat, steps, real_dims=chunk.action_dim, real_rows=chunk.real_rows
            )

        context, size = self.held_out.contexts[name], self.config.batch_size
        for part, (sums, end) in over_batches(policy, context, noise, size, follow):
            ends[part] = end.unflatten(0, (-1, noise.shape[1])).float().cpu()
            total = sums if total is None else total.merge(sums)
            self.tick(steps)
        assert total is not None
        _require_finite(ends, name, Way("euler", steps))
        return _curvature_row(name, total, self.held_out, self.config.seed), ends


def _require_finite(ends: Tensor, name: PolicyName, way: Way) -> None:
    if not ends.isfinite().all():
        raise UserError(
            f"{name}: {way.num_steps} {way.solver} steps end in NaN or infinite actions; train again with a lower "
            "--optimizer.lr, or check the teacher's weights."
        )


def _curvature_row(policy: PolicyName, sums: Curvature, held_out: HeldOutSet, seed: int) -> CurvatureRow:
    """Curvature along the trajectories of all observations and their noises, with its interval over episodes."""
    interval = None
    if sums.chord_of_each.sum() > 0 and sums.deviation_of_each.sum() > 0:
        clusters = held_out.episodes.repeat_interleave(sums.count // len(held_out.noise))
        roots = (sums.deviation_of_each.sqrt().numpy(), sums.chord_of_each.sqrt().numpy())
        interval = ratio_of_rms(*roots, seed=seed, clusters=clusters.numpy()).interval
    return CurvatureRow(
        policy=policy,
        num_steps=sums.num_steps,
        trajectories=sums.count,
        s=sums.s,
        curvature=sums.curvature,
        s_all_dims=sums.s_all_dims,
        curvature_all_dims=sums.curvature_all_dims,
        times=sums.times.tolist(),
        s_by_time=sums.s_by_time.tolist(),
        s_by_dim=sums.s_by_dim.tolist(),
        s_by_time_and_dim=sums.s_by_time_and_dim[:, : sums.real_dims].tolist(),
        interval=interval,
    )
