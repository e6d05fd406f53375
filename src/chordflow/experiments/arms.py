"""The episodes of an evaluation: which policies run, in which ways and order, and when they suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from chordflow.console import Bar, bar, say
from chordflow.errors import UserError, named
from chordflow.experiments.config import env_name
from chordflow.experiments.evaluate_config import DelayConfig, EvaluateConfig
from chordflow.experiments.measured import Entrant
from chordflow.experiments.provenance import collected_in
from chordflow.flow.solvers import get_solver
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.sampling import guidance_weight
from chordflow.results.episodes import DelayMode
from chordflow.results.schema import (
    TEACHER,
    DelayRow,
    FreeWays,
    MotionRow,
    PolicyName,
    Results,
    Rollouts,
    SequentialRow,
    SuccessRow,
)
from chordflow.results.sequential import SequentialTest
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import Episode, Starts, paired
from chordflow.rollouts.lerobot_noise import run_lerobot_episodes
from chordflow.rollouts.runner import Runner, open_runner
from chordflow.rollouts.store import JOINED, EpisodeStore, arm_settings
from chordflow.rollouts.summaries import delay_row, motion_rows, success_rows, timing_row, valid_under_looking

EPISODES = "episodes"
"""Folder of the episodes, in a run's folder."""

Clip = dict[str, list[Episode]]
"""For the moving picture, episodes with frames by label, the same seeds under each."""


def check_environment(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> None:
    """Makes sure that every policy can act in the environment, before what takes long begins.

    Raises:
        UserError: if one cannot, a delay is too long for its chunks, or LeRobot has none of `delay.modes` for it.
    """
    delay = config.delay
    for entrant in entrants.values() if delay.control_steps else ():
        policy, modes = entrant.policy, _modes_of(delay, entrant.policy)
        if not modes:
            raise UserError(f"delay.modes={delay.modes}: {_why_no_rtc(entrant)}; give sync or async.")
        if modes != delay.modes:
            say(f"Delay:   no rtc for {entrant.name}: {_why_no_rtc(entrant)}")
        executed = config.eval.n_action_steps or policy.chunk.num_executed
        for execution in _executions(delay, 1, policy):
            with named(f"delay.control_steps={delay.control_steps}"):
                execution.check(policy.chunk, executed)
    with open_runner(config.env, 1) as runner:
        for entrant in entrants.values():
            runner.check(entrant.policy, config.seed, f"{entrant.field}={entrant.path}")


def run_arms(
    config: EvaluateConfig, entrants: dict[PolicyName, Entrant], results: Results
) -> tuple[Results, Clip]:
    """Runs all episodes of an evaluation.

    With paired noise the teacher as deployed and the candidates come first, block by block where the run is
    sequential; whatever else is asked for then runs through the same seeds.

    Returns:
        `results`, which may name the best ways to act without training, with what the episodes came to; and the
        recorded episodes.
    """
    rollouts = Rollouts(
        env=env_name(config.env),
        noise=config.noise,
        first_seed=config.seed,
        batch_size=config.eval.batch_size,
        num_workers=config.eval.num_workers,
        margin=config.margin_fraction,
    )
    results = replace(results, rollouts=rollouts)
    if config.noise == "lerobot":
        return _run_like_lerobot(config, entrants, results), {}
    with open_runner(config.env, config.eval.batch_size, config.eval.num_workers) as runner:
        return _Rollouts(config, entrants, runner, results.free).run(results)


@dataclass(frozen=True)
class RolloutArm:
    """One way to act: a policy under its name, how its ODE is solved, and what is done about a delay."""

    name: PolicyName
    policy: FlowPolicy
    num_steps: int
    solver: str = "euler"
    grid_power: float = 1.0
    execution: Execution = field(default_factory=Execution)

    def actor(self, config: EvaluateConfig) -> Actor:
        """Who runs its episodes."""
        how, executed = (self.num_steps, self.solver, self.grid_power), config.eval.n_action_steps
        return Actor(self.policy, config.env, *how, executed, self.execution)

    @property
    def key(self) -> str:
        """A name for files, one for each way to act."""
        parts = [self.name, str(self.num_steps), self.solver]
        if self.grid_power != 1:
            parts.append(f"g{self.grid_power:g}")
        if self.execution.mode != "none":
            parts += [self.execution.mode, f"d{self.execution.delay}"]
        if self.execution.max_guidance_weight is not None:
            parts.append(f"w{self.execution.max_guidance_weight:g}")
        return "-".join(parts)

    @property
    def label(self) -> str:
        """A name for people."""
        solver = "" if self.solver == "euler" else f"{self.solver} "
        text = f"{self.name}, {self.num_steps} {solver}step{'s' * (self.num_steps > 1)}"
        if self.grid_power != 1:
            text += f", grid power {self.grid_power:g}"
        if self.execution.mode == "none":
            return text
        weight = self.execution.max_guidance_weight
        guided = f" at weight {weight:g}" if weight is not None else ""
        return f"{text}, {self.execution.mode}{guided}, delay {self.execution.delay}"


@dataclass
class Count:
    """Shows on a bar how many of `total` episodes have ended; `note` says whose, where several arms share it."""

    progress: Bar
    total: int
    done: int = 0
    note: str = ""

    def __call__(self, _episode: Episode) -> None:
        """Counts one more."""
        self.done += 1
        self.progress.update(self.done, max(self.done, self.total), self.note)


def _arm(entrant: Entrant, num_steps: int | None = None) -> RolloutArm:
    own = entrant.policy
    return RolloutArm(entrant.name, own, num_steps or entrant.num_steps, own.solver, own.grid_power)


def _store(config: EvaluateConfig, arm: RolloutArm) -> EpisodeStore:
    return EpisodeStore(config.output_dir / EPISODES / arm.key, arm_settings(arm.actor(config)))


def refuse_other_episodes(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> None:
    """Makes sure, before anything is written, that the episodes of a run that is resumed were of these policies.

    Raises:
        UserError: if they were of others, or made in another way.
    """
    for arm in map(_arm, entrants.values()):
        if config.env is not None and (config.output_dir / EPISODES / arm.key).is_dir():
            _store(config, arm)


class _Rollouts:
    """The episodes of one evaluation, with paired noise."""

    def __init__(
        self,
        config: EvaluateConfig,
        entrants: dict[PolicyName, Entrant],
        runner: Runner,
        free: FreeWays | None,
    ) -> None:
        self.config, self.entrants, self.runner, self.free = config, entrants, runner, free
        self.teacher = _arm(entrants[TEACHER])
        self.candidates = [_arm(entrant) for name, entrant in entrants.items() if name != TEACHER]
        self.runs: dict[RolloutArm, list[Episode]] = {}
        self.stores: dict[RolloutArm, EpisodeStore] = {}
        self.seeds = list(range(config.seed, config.seed + config.eval.n_episodes))
        numbers = runner.tasks()
        self.tasks = len(numbers)
        ranges = [run for entrant in entrants.values() for run in collected_in(entrant.folder)]
        # Older records have the type alone.
        here = {config.env.type, env_name(config.env)} if config.env is not None else set()
        collected = [run for run in ranges if run.env in here]
        self.starts = Starts.known(numbers, collected)
        self.least_starts = min((number for number in numbers.values() if number), default=len(self.seeds))
        # Of a suite with many tasks the pictures of all of them would be too much to keep.
        clips = config.eval.num_clips
        self.recorded = self.seeds[:clips] if self.tasks <= max(1, clips) else []

    def run(self, results: Results) -> tuple[Results, Clip]:
        """Runs all of them."""
        config = self.config
        if self.least_starts < len(self.seeds):
            say(
                f"Starts:  {len(self.seeds)} episodes of a task repeat its {self.least_starts} starts; intervals count "
                "each start once"
            )
        sequential = self._run_core()
        seeds = sorted({episode.seed for episode in self.runs[self.teacher]})
        untrained = self._untrained()
        for arm in untrained:
            self._run(arm, seeds)
        delays = self._run_delays(seeds)
        success: list[SuccessRow] = []
        motion: list[MotionRow] = []
        timing, clip = [], {}
        for store in self.stores.values():
            store.compact()
        for arm in (self.teacher, *untrained, *self.candidates):
            episodes, reference = self.runs[arm], None if arm == self.teacher else self.runs[self.teacher]
            rows = success_rows(episodes, arm.name, reference, self.starts, config.margin_fraction)
            success += [valid_under_looking(row) for row in rows] if sequential else rows
            motion += motion_rows(episodes, arm.name, reference, config.seed, self.starts)
            # Of all episodes, those of the runs before an interruption included.
            spent = self.stores[arm].timing
            timing.append(timing_row(arm.name, arm.num_steps, spent, arm.solver, arm.grid_power))
            if self.recorded and (arm in self.candidates or (arm.solver, arm.grid_power) == ("euler", 1.0)):
                clip[arm.label] = [episode for episode in episodes if episode.frames is not None]
        results = replace(
            results, success=success, motion=motion, delays=delays, sequential=sequential, timing=timing
        )
        return results, clip

    def _untrained(self) -> list[RolloutArm]:
        """The free alternative: the teacher at few steps, by Euler and by the best way at as many evaluations."""
        few = {get_solver(arm.solver).nfe(arm.num_steps) for arm in self.candidates}
        few = few.union(self.config.eval.teacher_num_steps) - {self.teacher.num_steps}
        entrant = self.entrants[TEACHER]
        arms = [_arm(entrant, n) for n in sorted(few)]
        for n in sorted(n for n in few if n < self.teacher.num_steps):
            best = self.free.best(n) if self.free is not None else None
            if best is not None:
                arms.append(RolloutArm(TEACHER, entrant.policy, best.num_steps, best.solver, best.grid_power))
            elif n % 2 == 0:
                # Which way is best was not measured.
                arms.append(RolloutArm(TEACHER, entrant.policy, n // 2, "midpoint"))
        return list(dict.fromkeys(arms))

    def _run_core(self) -> list[SequentialRow]:
        """Teacher and candidates, to the end or until the pairs decide."""
        config, seeds, tasks = self.config, self.seeds, self.tasks
        core = [self.teacher, *self.candidates]
        if not config.sequential.enable:
            for arm in core:
                self._run(arm, seeds)
            return []
        # Episodes from a start that was seen before are no further evidence.
        seeds = seeds[: self.least_starts]
        tests = {
            arm: SequentialTest(
                config.margin_fraction,
                min_episodes=min(config.sequential.min_episodes, len(seeds)) * tasks,
                max_episodes=len(seeds) * tasks,
                look_every=tasks,
            )
            for arm in self.candidates
        }
        with bar("episodes") as progress:
            count = Count(progress, len(core) * len(seeds) * tasks)
            for start in range(0, len(seeds), config.eval.batch_size):
                block = seeds[start : start + config.eval.batch_size]
                for arm in core:
                    self._run(arm, block, count)
                for arm, test in tests.items():
                    # In the order of seeds, never in that of ending: short episodes would come first.
                    pairs = paired(self._of(arm, block), self._of(self.teacher, block))
                    pairs.sort(key=lambda pair: pair[0].seed)
                    test.update([a.success for a, _ in pairs], [b.success for _, b in pairs])
                if all(test.finished for test in tests.values()):
                    # As many as were needed, which may be fewer than were allowed.
                    progress.update(count.done, count.done)
                    break
        return [SequentialRow(arm.name, arm.num_steps, test.state()) for arm, test in tests.items()]

    def _run_delays(self, seeds: Sequence[int]) -> list[DelayRow]:
        """Every policy under every delay, each beside itself without one."""
        delay, rows = self.config.delay, []
        seeds = seeds[: delay.n_episodes]
        for entrant in self.entrants.values() if delay.control_steps else ():
            for n in delay.num_steps if entrant.exported is None else [entrant.num_steps]:
                plain = _arm(entrant, n)
                ways = [replace(plain, execution=how) for how in _executions(delay, n, entrant.policy)]
                for arm in (plain, *ways):
                    self._run(arm, seeds)
                    row = delay_row(
                        self._of(arm, seeds),
                        arm.name,
                        None if arm == plain else self._of(plain, seeds),
                        guidance_weight=arm.execution.max_guidance_weight,
                        seed=self.config.seed,
                        starts=self.starts,
                    )
                    rows.append(row)
        return rows

    def _of(self, arm: RolloutArm, seeds: Sequence[int]) -> list[Episode]:
        wanted = set(seeds)
        return [episode for episode in self.runs[arm] if episode.seed in wanted]

    def _run(self, arm: RolloutArm, seeds: Sequence[int], count: Count | None = None) -> None:
        """Runs an arm through seeds that it has not run yet, on a bar of its own or on that of `count`."""
        done = {episode.seed for episode in self.runs.get(arm, [])}
        wanted = [seed for seed in seeds if seed not in done]
        if not wanted:
            return
        if arm not in self.stores:
            self.stores[arm] = _store(self.config, arm)
        with contextlib.ExitStack() as stack:
            if count is None:
                count = Count(stack.enter_context(bar(f"episodes, {arm.label}")), len(wanted) * self.tasks)
            else:
                count.note = arm.label
            new = self.runner.run(
                arm.actor(self.config),
                wanted,
                store=self.stores[arm],
                record_frames=[seed for seed in wanted if seed in self.recorded],
                progress=count,
            )
        self.runs[arm] = self.runs.get(arm, []) + new


def _modes_of(options: DelayConfig, policy: FlowPolicy) -> list[DelayMode]:
    """The modes that a robot could run this policy in."""
    return [mode for mode in options.modes if mode != "rtc" or policy.supports_real_time_chunking]


def _why_no_rtc(entrant: Entrant) -> str:
    if entrant.exported is not None:
        return "guidance needs a gradient, which an exported graph does not give"
    return f"LeRobot does not guide the chunks of policy type {entrant.policy.family!r} in real time"


def _executions(options: DelayConfig, num_steps: int, policy: FlowPolicy) -> Iterator[Execution]:
    """Delays in every mode; real-time chunking with the weight that fits, and with the usual one beside it."""
    for delay in options.control_steps:
        for mode in _modes_of(options, policy):
            if mode != "rtc":
                yield Execution(mode, delay, options.hold)
                continue
            for weight in dict.fromkeys((guidance_weight(num_steps), options.reference_weight)):
                yield Execution(mode, delay, options.hold, max_guidance_weight=weight)


def _run_like_lerobot(
    config: EvaluateConfig, entrants: dict[PolicyName, Entrant], results: Results
) -> Results:
    """Runs every policy as `lerobot-eval` would, with the same seed and batch size.

    Episodes are not paired, so nothing is compared but rates.
    """
    options, teacher = config.eval, entrants[TEACHER]
    few = sorted({e.num_steps for e in entrants.values()} | set(options.teacher_num_steps))
    plan = [(teacher, teacher.num_steps), *((teacher, n) for n in few if n != teacher.num_steps)]
    plan += [(entrant, entrant.num_steps) for name, entrant in entrants.items() if name != TEACHER]
    success: list[SuccessRow] = []
    motion: list[MotionRow] = []
    with open_runner(config.env, 1) as runner:
        # LeRobot's environments choose the start of an episode themselves; only the number of starts is known.
        starts = Starts(runner.tasks())
    for entrant, num_steps in plan:
        arm = RolloutArm(entrant.name, entrant.policy, num_steps)
        settings = arm_settings(arm.actor(config))
        del settings["noise_key"]
        drawn = {"noise": "lerobot", "seed": config.seed, "batch_size": options.batch_size}
        store = EpisodeStore(
            config.output_dir / EPISODES / f"{arm.key}-lerobot",
            {**settings, **drawn, "n_episodes": options.n_episodes},
        )
        # Noise comes from one stream of random numbers, so only a run that has ended is not run again.
        episodes = store.load() if (store.folder / JOINED).exists() else []
        if not episodes:
            load = partial(
                load_flow_policy,
                entrant.folder,
                device=config.device,
                rename_map=config.rename_map,
                field=entrant.field,
            )
            with bar(f"episodes, {arm.label}") as progress:
                episodes = run_lerobot_episodes(
                    load,
                    config.env,
                    seed=config.seed,
                    n_episodes=options.n_episodes,
                    batch_size=options.batch_size,
                    num_steps=num_steps,
                    n_action_steps=options.n_action_steps,
                    use_async_envs=options.num_workers > 0,
                    progress=Count(progress, options.n_episodes),
                )
            store.save(episodes)
            store.compact()
        success += success_rows(episodes, entrant.name, None, starts, config.margin_fraction)
        motion += motion_rows(episodes, entrant.name, None, config.seed, starts)
    return replace(results, success=success, motion=motion)
