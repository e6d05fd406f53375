"""Runs a policy through episodes that are each a pure function of policy, seed, solver and steps.

Work goes in rounds. In a round every running episode gets a chunk, in one batch, and executes it by itself;
one that ends makes room for the next seed. So the network never sees an episode that is over, observations
are processed only where a chunk is asked for, and an episode does not depend on who shares its batch (but
for the rounding of batched matrix products).

Shapes: B batch, H chunk size, D padded and A real action dimension, K executed actions of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lerobot.envs import make_env_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_PREFIX, OBS_STATE
from numpy.typing import NDArray

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler
from chordflow.rollouts.environment import (
    batch_observations,
    frame,
    instruction,
    open_environments,
    reset,
    step_limit,
)
from chordflow.rollouts.episodes import Episode, jerk, jump
from chordflow.rollouts.noise import chunk_noises

Progress = Callable[[Episode], None]


def run_episodes(
    policy: FlowPolicy,
    env_cfg: Any,
    seeds: Sequence[int],
    *,
    num_steps: int,
    solver: str = "euler",
    batch_size: int = 32,
    n_action_steps: int | None = None,
    record_frames: Collection[int] = (),
    progress: Progress | None = None,
) -> list[Episode]:
    """Runs one episode for each seed.

    Observations and actions go the way of LeRobot's own rollout: the environment's processors around the
    checkpoint's. Only the noise differs: see `rollouts.noise`.

    Args:
        policy: who acts.
        env_cfg: a LeRobot `EnvConfig` with a single task.
        seeds: of the episodes, each once.
        num_steps: solver steps for each chunk; the step count that the policy is saved with is not used.
        solver: euler, midpoint or heun.
        batch_size: episodes that run side by side; for speed, no result depends on it but by rounding.
        n_action_steps: executed actions of each chunk; the policy's own by default.
        record_frames: seeds of the episodes whose pictures are kept.
        progress: called with each episode as it ends, in whichever order they end.

    Returns:
        The episodes in the order of `seeds`.

    Raises:
        UserError: for impossible arguments, an environment that cannot be made or lacks what the policy looks
            at, another action size, or an action that is not finite.
    """
    sampler = Sampler(policy, num_steps, solver)
    executed = _check_arguments(policy, seeds, batch_size, n_action_steps, record_frames)
    waiting = iter(seeds)
    episodes: dict[int, Episode] = {}
    with open_environments(env_cfg, min(batch_size, len(seeds))) as envs, _evaluation_mode(policy):
        actor = _Actor(sampler, env_cfg, executed)
        running: list[_Running] = []
        free = envs
        while True:
            begin = time.perf_counter()
            # `free` first: a zip that ends by it takes no seed along.
            for env, seed in zip(free, waiting, strict=False):
                running.append(_Running(env, seed, seed in record_frames))
            if not running:
                break
            for episode, actions in zip(running, actor.act(running), strict=True):
                episode.execute(actions)
            share = (time.perf_counter() - begin) / len(running)
            for episode in running:
                episode.seconds += share
            free = [episode.env for episode in running if episode.ended]
            for episode in running:
                if episode.ended:
                    done = episode.finish(sampler)
                    episodes[done.seed] = done
                    if progress is not None:
                        progress(done)
            running = [episode for episode in running if not episode.ended]
    return [episodes[seed] for seed in seeds]


class _Actor:
    """From running episodes to their next actions in the robot's units."""

    def __init__(self, sampler: Sampler, env_cfg: Any, executed: int) -> None:
        self.sampler = sampler
        self.policy = sampler.policy
        self.executed = executed
        self.name = f"env.type={env_cfg.type}"
        self.before, self.after = make_env_pre_post_processors(env_cfg, policy_cfg=self.policy.config)

    @torch.no_grad()
    def act(self, running: Sequence[_Running]) -> NDArray[np.float32]:
        """The actions (B, K, A) that the running episodes execute next."""
        policy = self.policy
        observation = batch_observations(running[0].env, [episode.observation for episode in running])
        observation["task"] = [episode.task for episode in running]
        observation = self.before(observation)
        self._check_state(observation)
        batch = policy.preprocess(observation)
        self._check_inputs(batch, observation)
        noise = chunk_noises(policy, [(episode.seed, episode.chunks) for episode in running])
        endpoint = self.sampler(policy.encode(batch), noise.to(policy.device))
        chunk = policy.to_action(endpoint[:, : self.executed])
        # One control step at a time, as LeRobot's rollout hands actions to the environment's processor.
        steps = [self.after({ACTION: step})[ACTION] for step in chunk.unbind(1)]
        actions = torch.stack(steps, dim=1).to("cpu", torch.float32).numpy()
        self._check_actions(actions, running)
        return actions

    def _check_state(self, observation: dict[str, Any]) -> None:
        feature = self.policy.config.robot_state_feature
        state = observation.get(OBS_STATE)
        if feature is not None and state is not None and tuple(state.shape[1:]) != tuple(feature.shape):
            raise UserError(
                f"{self.name}: {OBS_STATE} has shape {tuple(state.shape[1:])}, but the checkpoint was "
                f"trained with {tuple(feature.shape)}; give the environment that it was trained for."
            )

    def _check_inputs(self, batch: dict[str, Any], observation: dict[str, Any]) -> None:
        # After the preprocessor, whose rename_map may have named the cameras.
        keys = self.policy.image_keys
        missing = [key for key in keys if key not in batch]
        has = ", ".join(key for key in observation if key.startswith(OBS_PREFIX)) or "nothing"
        if len(missing) > self.policy.max_missing_cameras or (keys and len(missing) == len(keys)):
            raise UserError(
                f"{self.name} lacks the checkpoint's camera(s) {', '.join(missing)}; it observes {has}: map "
                "them with --rename_map."
            )
        if self.policy.config.robot_state_feature is not None and OBS_STATE not in batch:
            raise UserError(f"{self.name} has no {OBS_STATE}, which the checkpoint needs; it observes {has}.")

    def _check_actions(self, actions: NDArray[np.float32], running: Sequence[_Running]) -> None:
        space = running[0].env.action_space
        if space.shape != actions.shape[2:]:
            raise UserError(
                f"{self.name} takes actions of shape {space.shape}, but the checkpoint's have shape "
                f"{actions.shape[2:]}; give the environment that it was trained for."
            )
        for episode, rows in zip(running, actions, strict=True):
            if not np.isfinite(rows).all():
                raise UserError(
                    f"the policy's action is NaN or infinite in episode {episode.seed}, step "
                    f"{len(episode.actions)}; check the checkpoint's weights and the observations."
                )


class _Running:
    """An episode on its way."""

    def __init__(self, env: gym.Env[Any, Any], seed: int, recorded: bool) -> None:
        self.env = env
        self.seed = seed
        self.observation = reset(env, seed)
        self.task = instruction(env)
        self.limit = step_limit(env)
        self.actions: list[NDArray[np.float32]] = []
        self.starts: list[int] = []
        self.frames = [frame(env, self.observation)] if recorded else None
        self.sum_reward = 0.0
        self.success = False
        self.side: str | None = None
        self.ended = False
        self.seconds = 0.0

    @property
    def chunks(self) -> int:
        """Chunks that were executed so far: the index of the next one."""
        return len(self.starts)

    def execute(self, actions: NDArray[np.float32]) -> None:
        """Runs the actions (K, A) of one chunk, as far as the episode goes."""
        self.starts.append(len(self.actions))
        for action in actions:
            self.actions.append(action)
            self.observation, reward, terminated, truncated, info = self.env.step(action)
            if self.frames is not None:
                self.frames.append(frame(self.env, self.observation))
            self.sum_reward += float(reward)
            self.success = self.success or bool(info.get("is_success", False))
            if "side" in info:
                self.side = str(info["side"])
            if terminated or truncated or len(self.actions) == self.limit:
                self.ended = True
                return

    def finish(self, sampler: Sampler) -> Episode:
        """The episode as it is reported."""
        actions = np.stack(self.actions)
        return Episode(
            seed=self.seed,
            task=self.task,
            success=self.success,
            length=len(actions),
            sum_reward=self.sum_reward,
            side=self.side,
            chunks=self.chunks,
            num_steps=sampler.num_steps,
            solver=sampler.solver,
            jerk=jerk(actions),
            jump=jump(actions, self.starts),
            seconds=self.seconds,
            actions=actions,
            frames=np.stack(self.frames) if self.frames is not None else None,
        )


@contextmanager
def _evaluation_mode(policy: FlowPolicy) -> Iterator[None]:
    """Puts the policy in the mode in which LeRobot runs it, and back."""
    training = policy.module.training
    policy.module.eval()
    try:
        yield
    finally:
        policy.module.train(training)


def _check_arguments(
    policy: FlowPolicy,
    seeds: Sequence[int],
    batch_size: int,
    n_action_steps: int | None,
    record_frames: Collection[int],
) -> int:
    """Executed actions of each chunk."""
    if not seeds:
        raise UserError("seeds is empty; give at least one episode.")
    bad = [seed for seed in seeds if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    if bad:
        raise UserError(f"seeds holds {bad[0]!r}; give whole numbers of at least 0.")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds holds {len(seeds) - len(set(seeds))} repeated numbers; give each seed once.")
    stray = set(record_frames) - set(seeds)
    if stray:
        raise UserError(
            f"record_frames holds the seed {min(stray)}, which is not among seeds; choose from these."
        )
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; run at least 1 episode at a time.")
    executed = policy.chunk.num_executed if n_action_steps is None else n_action_steps
    if not 1 <= executed <= policy.chunk.horizon:
        raise UserError(
            f"n_action_steps is {executed}; a chunk has {policy.chunk.horizon} actions: choose 1 to "
            f"{policy.chunk.horizon}."
        )
    return executed
