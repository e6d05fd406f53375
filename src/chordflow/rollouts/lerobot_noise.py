"""`lerobot-eval`, episode by episode: its own rollout, its seeds, its global generator.

Paired noise (`rollouts.acting`) is the better measure of a difference between policies. This is to show that
both agree: with the same seed, batch size and number of steps the outcomes are those of stock LeRobot.

Shapes: B batch, S steps until the last episode of a batch ends.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from lerobot.envs import close_envs, make_env_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.constants import ACTION
from lerobot.utils.random_utils import get_rng_state, set_rng_state, set_seed

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy
from chordflow.rollouts.acting import check_actions, check_finite, check_observation
from chordflow.rollouts.environments import TaskKey, Vector, instruction, make_environments
from chordflow.rollouts.episodes import Episode, jerk, jump


def run_lerobot_episodes(
    load: Callable[[], FlowPolicy],
    env_cfg: Any,
    *,
    seed: int,
    n_episodes: int,
    batch_size: int,
    num_steps: int | None = None,
    n_action_steps: int | None = None,
    use_async_envs: bool = False,
    progress: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Runs the episodes that `lerobot-eval` runs with the same `--seed`, `--eval.n_episodes` and `--eval.batch_size`.

    Its order is kept, because everything draws from one generator: seed it, make the environments, build the policy
    (whose initial weights are drawn before the checkpoint's replace them), then task by task one batch of seeds after
    the other, each until its last episode ends. Noise is drawn for the whole batch whenever a chunk is due, also for
    episodes that are over and for the surplus ones of the last batch, which are then cut. So an episode depends on the
    batch size and on its neighbours.

    As in `lerobot-eval`, and other than in paired episodes, `sum_reward` and `success` count one step beyond an
    episode's end (where the environment resets itself, the first step of another episode). `side` is
    None: LeRobot's rollout hands on no such thing.

    Args:
        load: loads the policy afresh (`load_flow_policy`); it is called once, at its place in the order.
        env_cfg: a LeRobot `EnvConfig`; tasks run one by one, whatever its `max_parallel_tasks`, with which nothing
            repeats.
        seed: of the generators and of each task's first episode; episode i has `seed + i`.
        n_episodes: how many of each task.
        batch_size: environments side by side; like `lerobot-eval`, no more than there are episodes.
        num_steps: as `--policy.num_steps`; the saved ones by default.
        n_action_steps: as `--policy.n_action_steps`; the saved ones by default.
        use_async_envs: whether the environments run in processes of their own, as in `lerobot-eval` by default;
            no outcome depends on it where an environment draws from its seed alone.
        progress: called with the episodes of each batch as it ends.

    Returns:
        The episodes, task by task, by rising seed.

    Raises:
        UserError: as `Runner.run`, and for a policy that `lerobot-eval` refuses.
    """
    count = min(batch_size, n_episodes)
    episodes: list[Episode] = []
    with ExitStack() as stack:
        # The caller's streams are left as they were.
        stack.callback(set_rng_state, get_rng_state())
        set_seed(seed)
        tasks = make_environments(env_cfg, count, use_async_envs)
        stack.callback(close_envs, list(tasks.values()))
        policy = load()
        _configure(policy, num_steps, n_action_steps)
        for task, env in tasks.items():
            check_actions(policy, env_cfg, env.single_action_space.shape or ())
            for start in range(0, n_episodes, count):
                seeds = list(range(seed + start, seed + start + count))
                batch = _run_batch(policy, env, env_cfg, task, seeds, kept=min(count, n_episodes - start))
                episodes += batch
                if progress is not None:
                    for episode in batch:
                        progress(episode)
            # A task's simulators are closed before the next one's begin.
            env.close()
    return episodes


def _configure(policy: FlowPolicy, num_steps: int | None, n_action_steps: int | None) -> None:
    """Sets what `--policy.*` would set, and refuses what `lerobot-eval` refuses."""
    if num_steps is not None:
        policy.set_num_steps(num_steps)
    if n_action_steps is not None:
        policy.set_num_executed(n_action_steps)
    rtc = policy.rtc_config
    if rtc is not None and rtc.enabled:
        raise UserError(
            "rtc_config.enabled=true in config.json: lerobot-eval cannot run a policy with real-time chunking; "
            "use the paired noise, or set it to false."
        )


def _run_batch(
    policy: FlowPolicy, env: Vector, env_cfg: Any, task: TaskKey, seeds: list[int], kept: int
) -> list[Episode]:
    """LeRobot's rollout of a whole batch; the first `kept` of its episodes."""
    begin = time.perf_counter()
    policy.policy.eval()
    before, after = make_env_pre_post_processors(env_cfg, policy_cfg=policy.config)
    instructions: list[str] = []

    def note_instructions(env: Vector) -> None:
        # First called after the reset: later on an environment may have begun another episode by itself.
        if not instructions:
            instructions.extend(map(str, instruction(env.call, [""] * env.num_envs)))

    def preprocess(observation: dict[str, Any]) -> dict[str, Any]:
        check_observation(policy, env_cfg, observation)
        return policy.preprocessor(observation)

    # Its own bar is hidden; callers have `progress`.
    with _lerobot_settings(policy), redirect_stderr(io.StringIO()):
        data = rollout(
            env,
            policy.policy,
            env_preprocessor=before,
            env_postprocessor=after,
            preprocessor=preprocess,
            postprocessor=policy.postprocessor,
            seeds=seeds,
            render_callback=note_instructions,
        )
    # Length, rewards and success as LeRobot's `eval_policy` reduces (B, S): its mask takes in the step beyond the last.
    last = data["done"].int().argmax(dim=1)
    mask = (torch.arange(data["done"].shape[1]) <= last[:, None] + 1).int()
    sum_rewards = (data["reward"] * mask).sum(dim=1).tolist()
    successes = (data["success"] * mask).bool().any(dim=1).tolist()
    seconds = (time.perf_counter() - begin) / kept
    episodes = []
    for row in range(kept):
        actions = data[ACTION][row, : last[row] + 1].to(torch.float32).numpy()
        check_finite(actions, seeds[row], 0)
        starts = range(0, len(actions), policy.chunk.num_executed)
        episodes.append(
            Episode(
                seed=seeds[row],
                task=instructions[row],
                success=successes[row],
                length=len(actions),
                sum_reward=sum_rewards[row],
                side=None,
                chunks=len(starts),
                num_steps=policy.default_num_steps,
                solver="euler",
                jerk=jerk(actions),
                jump=jump(actions, starts),
                seconds=seconds,
                actions=actions,
                task_group=task[0],
                task_id=task[1],
            )
        )
    return episodes


@contextmanager
def _lerobot_settings(policy: FlowPolicy) -> Iterator[None]:
    """The precision that `lerobot-eval` sets for the whole process, and back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    saved = matmul.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.benchmark = True
    amp = torch.autocast(device_type=policy.device.type) if policy.config.use_amp else nullcontext()
    try:
        with torch.no_grad(), amp:
            yield
    finally:
        matmul.allow_tf32, cudnn.benchmark = saved
