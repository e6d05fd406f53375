"""Episodes of a study: the teacher's once, each student's as it is there, all with the same noise."""

from __future__ import annotations

from pathlib import Path

from chordflow.console import bar
from chordflow.experiments.study.config import StudyConfig
from chordflow.policies import FlowPolicy
from chordflow.results.schema import TEACHER, PolicyName, SuccessRow
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.runner import open_runner
from chordflow.rollouts.store import EpisodeStore, arm_settings
from chordflow.rollouts.summaries import success_rows

EPISODES = "episodes"
"""Folder of episodes, in the folder of whose they are."""

FREE_STEPS = (1, 2)
"""Euler steps at which the teacher acts untrained."""


class Episodes:
    """Runs policies in the environment of a study.

    Args:
        config: with an environment, and how episodes are run.
        teacher: the teacher.
        teacher_steps: its Euler steps as deployed.

    Raises:
        UserError: if the teacher cannot act in the environment.
    """

    def __init__(self, config: StudyConfig, teacher: FlowPolicy, teacher_steps: int) -> None:
        self._config, self._teacher, self._teacher_steps = config, teacher, teacher_steps
        self._deployed: list[Episode] | None = None
        with open_runner(config.env, 1) as runner:
            runner.check(teacher, config.eval.seed)

    def teacher(self) -> list[SuccessRow]:
        """The teacher's success untrained at one and two steps, and as deployed."""
        rows: list[SuccessRow] = []
        for num_steps in sorted({*FREE_STEPS} - {self._teacher_steps}):
            episodes = self._run(TEACHER, self._teacher, num_steps, self._teacher_folder(num_steps))
            rows += success_rows(episodes, TEACHER, self.deployed())
        return [*rows, *success_rows(self.deployed(), TEACHER)]

    def deployed(self) -> list[Episode]:
        """The episodes of the teacher as deployed, run or read once."""
        if self._deployed is None:
            folder = self._teacher_folder(self._teacher_steps)
            self._deployed = self._run(TEACHER, self._teacher, self._teacher_steps, folder)
        return self._deployed

    def student(self, name: PolicyName, policy: FlowPolicy, folder: Path, label: str) -> list[SuccessRow]:
        """A student's success at one step, paired with the teacher as deployed.

        Args:
            name: in its rows.
            policy: the student as reloaded from disk.
            folder: of its run.
            label: of the run, for the progress bar.
        """
        return success_rows(self._run(label, policy, 1, folder / EPISODES), name, self.deployed())

    def _teacher_folder(self, num_steps: int) -> Path:
        return self._config.output_dir / TEACHER / f"{num_steps}_steps" / EPISODES

    def _run(self, label: str, policy: FlowPolicy, num_steps: int, folder: Path) -> list[Episode]:
        config = self._config
        settings = arm_settings(
            policy, config.env, num_steps=num_steps, n_action_steps=config.eval.n_action_steps
        )
        store = EpisodeStore(folder, settings)
        count = 0
        with (
            bar(f"{label}, episodes at {num_steps}") as progress,
            open_runner(config.env, config.eval.batch_size, config.eval.num_workers) as runner,
        ):
            total = len(config.eval.seeds) * len(runner.tasks())

            def count_up(_episode: Episode) -> None:
                nonlocal count
                count += 1
                progress.update(count, total)

            episodes = runner.run(
                policy,
                config.eval.seeds,
                num_steps=num_steps,
                n_action_steps=config.eval.n_action_steps,
                store=store,
                progress=count_up,
            )
        store.compact()
        return episodes
