"""Episodes of several policies: which run, in which order, and when it is enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from chordflow.console import Bar, bar, say
from chordflow.errors import UserError
from chordflow.experiments.entrants import Arm, Entrant
from chordflow.experiments.evaluate_config import DelayConfig, EvaluateConfig
from chordflow.experiments.provenance import collected_in
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.sampling import guidance_weight
from chordflow.results.episodes import DelayMode
from chordflow.results.schema import (
    TEACHER,
    DelayRow,
    FreeWays,
    MotionRow,
    PolicyName,
    SequentialRow,
    SuccessRow,
    TimingRow,
)
from chordflow.results.sequential import SequentialTest
from chordflow.rollouts.delay import Execution, Hold
from chordflow.rollouts.episodes import Episode, SeedRange, Starts, paired
from chordflow.rollouts.lerobot_noise import run_lerobot_episodes
from chordflow.rollouts.runner import Runner, open_runner
from chordflow.rollouts.store import JOINED, EpisodeStore, arm_settings
from chordflow.rollouts.summaries import (
    delay_row,
    motion_rows,
    success_rows,
    timing_row,
    valid_under_looking,
)

EPISODES = "episodes"
"""Folder of the episodes, in a run's folder."""


@dataclass(frozen=True)
class RolloutResults:
    """What the episodes came to.

    Attributes:
        success: rows of success.
        motion: rows of motion.
        delays: rows under delay.
        sequential: where a sequential run stopped.
        timing: where the time went.
        clip: for the moving picture, episodes with frames by label, the same seeds under each.
    """

    success: list[SuccessRow]
    motion: list[MotionRow]
    delays: list[DelayRow]
    sequential: list[SequentialRow]
    timing: list[TimingRow]
    clip: dict[str, list[Episode]]


def run_arms(
    config: EvaluateConfig, entrants: dict[PolicyName, Entrant], free: FreeWays | None = None
) -> RolloutResults:
    """Runs all episodes of an evaluation with paired noise.

    The teacher as deployed and the candidates come first, block by block where the run is sequential; whatever else
    is asked for then runs through the same seeds.

    Args:
        config: all settings.
        entrants: the policies.
        free: the best ways to act without training, where a dataset was measured on.
    """
    with open_runner(config.env, config.eval.batch_size, config.eval.num_workers) as runner:
        return _Rollouts(config, entrants, runner, free).run()


def _collected(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> list[SeedRange]:
    """The episodes of this environment in which observations were collected for any of the policies."""
    env = config.env
    ranges = [run for entrant in entrants.values() for run in collected_in(entrant.folder)]
    return [run for run in ranges if env is not None and run.env == env.type]


def check_delays(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> None:
    """Makes sure that chunks bridge every delay.

    Raises:
        UserError: if one is too long for a policy's chunks, or all of `delay.modes` is real-time chunking, which
            LeRobot does not have for every family.
    """
    for entrant in entrants.values():
        policy, chunk = entrant.policy, entrant.policy.chunk
        if config.delay.control_steps and not modes_of(config.delay, policy):
            raise UserError(
                f"delay.modes={config.delay.modes}: LeRobot does not guide the chunks of policy type "
                f"{policy.family!r} in real time; give sync or async."
            )
        if config.delay.control_steps and modes_of(config.delay, policy) != config.delay.modes:
            say(
                f"Delay:   no rtc for {entrant.name}: LeRobot does not guide chunks of {policy.family} in real time"
            )
        executed = config.eval.n_action_steps or chunk.num_executed
        for execution in executions(config.delay, 1, policy):
            try:
                execution.check(chunk, executed)
            except UserError as error:
                raise UserError(f"delay.control_steps={config.delay.control_steps}: {error}") from error


def check_environment(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> None:
    """Makes sure that every policy can act in the environment, before what takes long begins.

    Raises:
        UserError: if one cannot, or a delay is too long for its chunks.
    """
    check_delays(config, entrants)
    with open_runner(config.env, 1) as runner:
        for entrant in entrants.values():
            runner.check(entrant.policy, config.seed)


@dataclass
class _Count:
    """Shows on a bar how many episodes have ended.

    Attributes:
        progress: the bar.
        total: how many there may be.
        done: how many there are.
        note: whose they are, where they are those of several arms.
    """

    progress: Bar
    total: int
    done: int = 0
    note: str = ""

    def __call__(self, _episode: Episode) -> None:
        """Counts one more."""
        self.done += 1
        self.progress.update(self.done, self.total, self.note)


class _Rollouts:
    """The episodes of one evaluation."""

    def __init__(
        self,
        config: EvaluateConfig,
        entrants: dict[PolicyName, Entrant],
        runner: Runner,
        free: FreeWays | None,
    ) -> None:
        self.config, self.entrants, self.runner, self.free = config, entrants, runner, free
        self.teacher = self._arm(entrants[TEACHER])
        self.candidates = [self._arm(entrant) for name, entrant in entrants.items() if name != TEACHER]
        self.runs: dict[Arm, list[Episode]] = {}
        self.stores: dict[Arm, EpisodeStore] = {}
        self.seeds = list(range(config.seed, config.seed + config.eval.n_episodes))
        numbers = runner.tasks()
        tasks = len(numbers)
        self.starts = Starts.known(numbers, _collected(config, entrants))
        self.least_starts = min((number for number in numbers.values() if number), default=len(self.seeds))
        # Of a suite with many tasks the pictures of all of them would be too much to keep.
        self.recorded = self.seeds[: config.eval.num_clips] if tasks <= max(1, config.eval.num_clips) else []
        self.tasks = tasks

    def run(self) -> RolloutResults:
        config = self.config
        if self.least_starts < len(self.seeds):
            say(
                f"Starts:  {len(self.seeds)} episodes of a task repeat its {self.least_starts} starts; intervals count "
                "each start once"
            )
        sequential = self._run_core()
        seeds = sorted({episode.seed for episode in self.runs[self.teacher]})
        for arm in self._untrained():
            self._run(arm, seeds)
        plain = [self.teacher, *self._untrained(), *self.candidates]
        delays = self._run_delays(seeds)
        for store in self.stores.values():
            store.compact()
        success, motion = [], []
        for arm in plain:
            reference = None if arm == self.teacher else self.runs[self.teacher]
            rows = success_rows(self.runs[arm], arm.name, reference, self.starts, config.margin_fraction)
            success += [valid_under_looking(row) for row in rows] if sequential else rows
            motion += motion_rows(self.runs[arm], arm.name, reference, config.seed, self.starts)
        return RolloutResults(
            success, motion, delays, sequential, [self._timing_row(arm) for arm in plain], self._clip(plain)
        )

    def _arm(self, entrant: Entrant, num_steps: int | None = None) -> Arm:
        return Arm(entrant.name, entrant.policy, num_steps or entrant.num_steps)

    def _untrained(self) -> list[Arm]:
        """The free alternative: the teacher at few steps, by Euler and by the best way at as many evaluations."""
        few = {arm.num_steps for arm in self.candidates} | set(self.config.eval.teacher_num_steps)
        few -= {self.teacher.num_steps}
        entrant = self.entrants[TEACHER]
        arms = [self._arm(entrant, n) for n in sorted(few)]
        for n in sorted(few):
            if n >= self.teacher.num_steps:
                continue
            best = self.free.best(n) if self.free is not None else None
            if best is not None:
                arms.append(Arm(TEACHER, entrant.policy, best.num_steps, best.solver, best.grid_power))
            elif n % 2 == 0:
                # Nothing tells which way is best.
                arms.append(Arm(TEACHER, entrant.policy, n // 2, "midpoint"))
        return list(dict.fromkeys(arms))

    def _run_core(self) -> list[SequentialRow]:
        config = self.config
        seeds, tasks = self.seeds, self.tasks
        if config.sequential.enable:
            # Episodes from a start that was seen before are no further evidence.
            seeds = seeds[: self.least_starts]
        core = [self.teacher, *self.candidates]
        if not config.sequential.enable:
            for arm in core:
                self._run(arm, seeds)
            return []
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
            count = _Count(progress, len(core) * len(seeds) * tasks)
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
        delay = self.config.delay
        if not delay.control_steps:
            return []
        seeds = seeds[: delay.n_episodes]
        rows = []
        for entrant in self.entrants.values():
            for n in delay.num_steps:
                plain = self._arm(entrant, n)
                self._run(plain, seeds)
                undelayed = self._of(plain, seeds)
                rows.append(self._delay_row(plain, undelayed, None))
                for execution in executions(delay, n, entrant.policy):
                    arm = Arm(entrant.name, entrant.policy, n, execution=execution)
                    self._run(arm, seeds)
                    rows.append(self._delay_row(arm, self._of(arm, seeds), undelayed))
        return rows

    def _delay_row(self, arm: Arm, episodes: list[Episode], undelayed: list[Episode] | None) -> DelayRow:
        return delay_row(
            episodes,
            arm.name,
            undelayed,
            guidance_weight=arm.execution.max_guidance_weight,
            seed=self.config.seed,
            starts=self.starts,
        )

    def _of(self, arm: Arm, seeds: Sequence[int]) -> list[Episode]:
        wanted = set(seeds)
        return [episode for episode in self.runs[arm] if episode.seed in wanted]

    def _run(self, arm: Arm, seeds: Sequence[int], count: _Count | None = None) -> None:
        """Runs an arm through seeds that it has not run yet, on a bar of its own or on that of `count`."""
        done = {episode.seed for episode in self.runs.get(arm, [])}
        wanted = [seed for seed in seeds if seed not in done]
        if not wanted:
            return
        config = self.config
        if arm not in self.stores:
            settings = arm_settings(
                arm.policy,
                config.env,
                num_steps=arm.num_steps,
                solver=arm.solver,
                grid_power=arm.grid_power,
                n_action_steps=config.eval.n_action_steps,
                execution=arm.execution,
            )
            self.stores[arm] = EpisodeStore(config.output_dir / EPISODES / arm.key, settings)
        with contextlib.ExitStack() as stack:
            if count is None:
                count = _Count(stack.enter_context(bar(arm.label)), len(wanted) * self.tasks)
            else:
                count.note = arm.label
            new = self.runner.run(
                arm.policy,
                wanted,
                num_steps=arm.num_steps,
                solver=arm.solver,
                grid_power=arm.grid_power,
                n_action_steps=config.eval.n_action_steps,
                execution=arm.execution,
                store=self.stores[arm],
                record_frames=[seed for seed in wanted if seed in self.recorded],
                progress=count,
            )
        self.runs[arm] = self.runs.get(arm, []) + new

    def _timing_row(self, arm: Arm) -> TimingRow:
        """Of all episodes, those of the runs before an interruption included."""
        return timing_row(arm.name, arm.num_steps, self.stores[arm].timing, arm.solver, arm.grid_power)

    def _clip(self, arms: Sequence[Arm]) -> dict[str, list[Episode]]:
        """The recorded episodes of each arm that runs by Euler, by its label."""
        return {
            arm.label: [episode for episode in self.runs[arm] if episode.frames is not None]
            for arm in arms
            if (arm.solver, arm.grid_power) == ("euler", 1.0) and self.recorded
        }


def modes_of(options: DelayConfig, policy: FlowPolicy) -> list[str]:
    """The modes that a robot could run this policy in."""
    return [mode for mode in options.modes if mode != "rtc" or policy.supports_real_time_chunking]


def executions(options: DelayConfig, num_steps: int, policy: FlowPolicy) -> Iterator[Execution]:
    """Delays in every mode; real-time chunking with the weight that fits, and with the usual one beside it."""
    hold = cast(Hold, options.hold)
    for delay in options.control_steps:
        for mode in cast(list[DelayMode], modes_of(options, policy)):
            if mode != "rtc":
                yield Execution(mode, delay, hold)
                continue
            for weight in dict.fromkeys((guidance_weight(num_steps), options.reference_weight)):
                yield Execution(mode, delay, hold, max_guidance_weight=weight)


def run_like_lerobot(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> RolloutResults:
    """Runs every policy as `lerobot-eval` would, with the same seed and batch size.

    Episodes are not paired, so nothing is compared but rates.
    """
    teacher = entrants[TEACHER]
    few = sorted({e.num_steps for e in entrants.values()} | set(config.eval.teacher_num_steps))
    plan = [(teacher, teacher.num_steps), *((teacher, n) for n in few if n != teacher.num_steps)]
    plan += [(entrant, entrant.num_steps) for name, entrant in entrants.items() if name != TEACHER]
    success: list[SuccessRow] = []
    motion: list[MotionRow] = []
    with open_runner(config.env, 1) as runner:
        # Which start an episode has LeRobot's environments count out by themselves; how many there are is known.
        starts = Starts(runner.tasks())
    for entrant, num_steps in plan:
        count = 0
        arm = Arm(entrant.name, entrant.policy, num_steps)
        settings = arm_settings(
            arm.policy, config.env, num_steps=num_steps, n_action_steps=config.eval.n_action_steps
        )
        drawn = {"noise": "lerobot", "seed": config.seed, "batch_size": config.eval.batch_size}
        del settings["noise_key"]
        store = EpisodeStore(
            config.output_dir / EPISODES / f"{arm.key}-lerobot",
            {**settings, **drawn, "n_episodes": config.eval.n_episodes},
        )
        with bar(arm.label) as progress:

            def count_up(episode: Episode, store: EpisodeStore = store) -> None:
                nonlocal count
                count += 1
                store.save([episode])
                progress.update(count, max(count, config.eval.n_episodes))

            episodes = _known(store) or run_lerobot_episodes(
                lambda entrant=entrant: load_flow_policy(  # type: ignore[misc]
                    entrant.folder, device=config.device, rename_map=config.rename_map, field=entrant.field
                ),
                config.env,
                seed=config.seed,
                n_episodes=config.eval.n_episodes,
                batch_size=config.eval.batch_size,
                num_steps=num_steps,
                n_action_steps=config.eval.n_action_steps,
                use_async_envs=config.eval.num_workers > 0,
                progress=count_up,
            )
        store.save(episodes)
        store.compact()
        success += success_rows(episodes, entrant.name, None, starts, config.margin_fraction)
        motion += motion_rows(episodes, entrant.name, None, config.seed, starts)
    return RolloutResults(success, motion, [], [], [], {})


def _known(store: EpisodeStore) -> list[Episode]:
    """The episodes of a policy that was run to its end; none otherwise.

    Noise comes from one stream of random numbers, so a run cannot go on in the middle of it.
    """
    return store.load() if (store.folder / JOINED).exists() else []
