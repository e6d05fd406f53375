"""Observations from episodes: what is kept, how it is stored and read, and what a training makes of it."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file
from torch.utils.data import default_collate

from builders import build_dataset
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig, Observations, open_split
from chordflow.couplings.collected import (
    About,
    Collection,
    MixedObservations,
    as_recorded,
    check_finite,
    collection_path,
    frames_of,
    known_collections,
    write_collection,
)
from chordflow.errors import UserError
from chordflow.experiments import collect as collect_module
from chordflow.experiments.collect import run_observations
from chordflow.experiments.config import ReflowJobConfig
from chordflow.options import build
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.reporting.table import markdown
from chordflow.results.schema import Results
from chordflow.rollouts.acting import Actor, Request
from chordflow.rollouts.collecting import Observed, collect
from chordflow.rollouts.episodes import SeedRange
from chordflow.rollouts.runner import run_episodes
from chordflow.rollouts.workers import open_host
from drift_env import DriftEnvConfig
from family_multi_task_dit import build as build_dit
from gaussian_setup import make_observations
from small_runs import Capture, cut_back, options, refused, student_of

FIRST, PLACE = 50, ("episode_index", "frame_index")
ROLLOUT = ("--observations=rollout", "--env.type=drift_of_the_tests", "--collect.num_observations=8",
           "--collect.batch_size=4", "--collect.between_share=0.3")  # fmt: skip


def collected(
    policy: FlowPolicy, count: int, *, between_share: float = 0.0, batch_size: int = 3
) -> tuple[list[Observed], list[SeedRange]]:
    found: list[Observed] = []
    with open_host(DriftEnvConfig(), batch_size) as host:
        ranges = collect(
            host, Actor(policy, DriftEnvConfig(), 2), count, first_seed=FIRST, batch_size=batch_size,
            between_share=between_share, take=found.append,
        )  # fmt: skip
    return found, ranges


def places(found: list[Observed]) -> list[tuple[int, int]]:
    return [place for one in found for place in zip(one.seeds, one.steps, strict=True)]


class TestCollecting:
    def test_what_is_kept_is_what_the_policy_was_shown(
        self, checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stored, read and encoded as a dataset's, an observation has the context that it had in its episode."""
        policy = load_flow_policy(checkpoint, device="cpu")
        shown: dict[tuple[int, int], Any] = {}
        act, encode = Actor.act, policy.encode
        contexts: list[Any] = []

        def spied_encode(batch: Any) -> Any:
            contexts.append(encode(batch))
            return contexts[-1]

        def spied_act(actor: Actor, requests: list[Request], *spaces: Any) -> Any:
            answer = act(actor, requests, *spaces)
            for row, request in enumerate(requests):
                shown[request.seed, request.step] = contexts[-1].index(torch.tensor([row]))
            return answer

        monkeypatch.setattr(policy, "encode", spied_encode)
        monkeypatch.setattr(Actor, "act", spied_act)
        found, (run,) = collected(policy, 12)
        split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), policy)
        recorded = split.train[0]
        frames: list[dict[str, Any]] = []
        for one in found:
            frames += frames_of(*collect_module._taken(one, recorded, policy, "env"), None)
        collection = write_collection(tmp_path, 0, frames, 10, about(12))
        assert run.first == FIRST < run.stop
        assert (collection.item(0)["episode_index"], collection.item(0)["frame_index"]) == places(found)[0]
        for row, place in enumerate(places(found)):
            item = collection.item(row)
            for key, value in item.items():
                like = recorded[key]
                assert type(value) is type(like), key
                assert isinstance(value, str) or (value.dtype, value.shape) == (like.dtype, like.shape)
            again = encode(policy.preprocess(default_collate([item])))
            x_t, t = torch.ones(1, *policy.chunk.shape), torch.tensor([0.5])
            torch.testing.assert_close(
                policy.velocity(x_t, t, again), policy.velocity(x_t, t, shown[place]), rtol=1e-4, atol=1e-5
            )
        assert len({place[1] for place in places(found)}) > 1

    def test_a_policy_with_a_history_sees_the_same_frames(self, tmp_path: Path) -> None:
        """Every frame may be kept: those of an episode's last chunk too, and nothing beyond its end."""
        policy = load_flow_policy(build_dit(tmp_path / "c", num_steps=2, seed=1, n_obs_steps=3), device="cpu")
        (episode,) = run_episodes(Actor(policy, DriftEnvConfig(), 2), [FIRST])
        found, (ran,) = collected(policy, episode.length, between_share=1.0, batch_size=1)
        assert ran.stop - ran.first == 1
        # Another task of the same type has other starts.
        assert ran.env == "drift_of_the_tests, Drift-v0"
        assert sorted(places(found)) == [(FIRST, step) for step in range(episode.length)]
        states = torch.cat([one.observation["observation.state"] for one in found])
        states = states[torch.tensor([step for _, step in places(found)]).argsort()]
        assert states.shape[1] == 3
        values = {"observation.state": states, "episode_index": torch.arange(len(states))}
        values["frame_index"] = values["episode_index"] + 5
        frames = list(frames_of(values, ["go"] * len(states), 3))
        stored = write_collection(tmp_path, 0, frames, 10, about(len(states), history=3))
        for row, state in enumerate(states):
            item = stored.item(row)
            assert torch.equal(item["observation.state"], state)
            assert (item["episode_index"], item["frame_index"]) == (row, row + 5)
        present = states[:, -1]
        for back in (1, 2):
            # An episode's first observation stands for those before it.
            before = torch.arange(episode.length).sub(back).clamp(min=0)
            assert torch.equal(states[:, 2 - back], present[before])


def about(observations: int, *, step: int = 0, history: int | None = None) -> About:
    return About(step, "teacher", 2, 1, 1, 0.0, observations, history)


def fake_collection(folder: Path, number: int, size: int, step: int = 0) -> Collection:
    values = {"observation.state": torch.full((size, 2), float(number))}
    values |= {name: torch.arange(size) for name in PLACE}
    frames = list(frames_of(values, ["go"] * size, None))
    return write_collection(folder, number, frames, 10, about(size, step=step))


@pytest.mark.parametrize(("times", "state", "action"), [
    (None, (1,), (1,)), ({"action": [0, 0.1, 0.2], "observation.state": [-0.1, 0]}, (2, 1), (3, 1)),
])  # fmt: skip
def test_vectors_of_one_number_keep_their_axis(
    times: dict[str, list[float]] | None, state: Any, action: Any, tmp_path: Path
) -> None:
    root = build_dataset(tmp_path / "data", 1, 3, cameras=(), state_dim=1, action_dim=1)
    recorded = Observations(LeRobotDataset("test/tiny", root, delta_timestamps=times), [0], actions=True)[0]
    assert (recorded["observation.state"].shape, recorded["action"].shape) == (state, action)
    values = {"observation.state": torch.ones(1, *state)} | {key: torch.arange(1) for key in PLACE}
    history = 2 if times else None
    stored = write_collection(
        tmp_path, 0, list(frames_of(values, ["go"], history)), 10, about(1, history=history)
    )
    assert torch.equal(stored.item(0)["observation.state"], torch.ones(state))


class TestMixed:
    def mixed(
        self, share: float, passes: int = 1, known: list[Collection] | None = None, folder: Path | None = None
    ) -> tuple[MixedObservations, list[int]]:
        """Without a folder collections that cannot be read; with the numbers of those that were asked for."""
        asked: list[int] = []

        def make(number: int) -> Collection:
            asked.append(number)
            nothing: Any = SimpleNamespace(item=lambda row: {})
            return fake_collection(folder, number, 6) if folder else nothing

        return MixedObservations(make_observations(10), share, 6, passes, make, known or []), asked

    @pytest.mark.parametrize(("share", "passes"), [(0.5, 1), (0.3, 2), (1.0, 1), (1 / 3, 1)])
    def test_blocks(self, share: float, passes: int) -> None:
        mixed, asked = self.mixed(share, passes)
        blocks = []
        for number in range(30):
            blocks.append(mixed.of_block(number, 4, 7))
            # Made when they are needed, and no sooner.
            assert asked == list(range(mixed.num_collections(number + 1, 4)))
        assert all(len(block) == 4 for block in blocks)
        rows = [index - 10 for block in blocks for index in block if index >= 10]
        assert len(rows) == pytest.approx(120 * share, abs=1e-3)
        # One collection after the other, each gone through `passes` times, all of it in every pass.
        for begin in range(0, len(rows) - 5, 6):
            number = begin // 6 // passes
            assert sorted(rows[begin : begin + 6]) == [6 * number + row for row in range(6)]
        # The dataset's are gone through as ever.
        recorded = [index for block in blocks for index in block if index < 10]
        assert all(sorted(recorded[i : i + 10]) == list(range(10)) for i in range(0, len(recorded) - 9, 10))
        # In any order, and where collections are there already.
        other, asked = self.mixed(share, passes, mixed.collections)
        assert [other.of_block(number, 4, 7) for number in reversed(range(30))] == blocks[::-1]
        assert asked == []

    def test_both_are_read_alike_and_by_workers(self, tmp_path: Path) -> None:
        mixed, _ = self.mixed(0.5, folder=tmp_path)
        block = mixed.of_block(0, 8, 0)
        (alone,) = mixed.batches(block, 8)
        (worked,) = mixed.batches(block, 8, num_workers=1)
        assert set(alone) == {"observation.state", "task", "episode_index", "frame_index"}
        assert torch.equal(alone["observation.state"], worked["observation.state"])
        assert alone["task"] == [""] * 4 + ["go"] * 4

    def test_later_collections_are_made_anew(self, tmp_path: Path) -> None:
        for number, step in enumerate((0, 0, 3, 5)):
            fake_collection(tmp_path, number, 2, step)
        (tmp_path / ".collection_000004.tmp").mkdir()
        assert [one.about.step for one in known_collections(tmp_path, 3)] == [0, 0]
        assert [one.about.step for one in known_collections(tmp_path, 4)] == [0, 0, 3]
        assert known_collections(tmp_path / "none", 4) == []
        # Broken, and not needed.
        shutil.rmtree(collection_path(tmp_path, 3) / "meta")
        assert len(known_collections(tmp_path, 5)) == 3
        with pytest.raises(UserError, match=r"collection_000003, which .* cannot be read"):
            known_collections(tmp_path, 6)

    def test_the_format_of_an_older_chordflow_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "collection_000000.safetensors").touch()
        with pytest.raises(UserError, match=r"config_path: .* format of an older chordflow; start a new run"):
            known_collections(tmp_path, 1)

    def test_what_does_not_fit_together(self) -> None:
        policy: Any = SimpleNamespace(
            own_name=lambda key: key,
            config=SimpleNamespace(input_features={"observation.state": 1, "observation.image": 1}),
        )
        item = {"observation.state": torch.zeros(2), "observation.image": torch.zeros(3, 8, 8), "task": "go"}
        batch = {"observation.state": torch.zeros(5, 2), "observation.image": torch.zeros(5, 3, 8, 8)}
        extra = {**batch, "observation.more": torch.zeros(5, 1)}
        assert as_recorded(extra, item, policy, "env").keys() == batch.keys()
        with pytest.raises(UserError, match=r"env: observation.image has shape \(3, 4, 4\).*\(3, 8, 8\)"):
            as_recorded({**batch, "observation.image": torch.zeros(5, 3, 4, 4)}, item, policy, "env")
        with pytest.raises(UserError, match=r"observation.image, which the dataset has and env has not"):
            as_recorded({"observation.state": torch.zeros(5, 2)}, item, policy, "env")
        with pytest.raises(UserError, match=r"observation.image, which env has and the dataset has not"):
            as_recorded(batch, {"observation.state": torch.zeros(2)}, policy, "env")
        broken = {"observation.state": torch.tensor([[0.0], [torch.nan]])}
        with pytest.raises(UserError, match=r"observation.state is NaN or infinite in the episode of seed 8"):
            check_finite(broken, [7, 8], "env")


class TestJob:
    @pytest.fixture(scope="class")
    def run(self, checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A finished run; not to be written to."""
        output = tmp_path_factory.mktemp("rollouts") / "out"
        assert main(options(checkpoint, dataset_root, output, *ROLLOUT)) == 0
        return output

    def test_says_where_observations_came_from(self, run: Path) -> None:
        abouts = [
            json.loads(path.read_text()) for path in sorted((run / "observations").glob("*/collection.json"))
        ]
        ends = [(one["acted_by"], one["num_steps"]) for one in (abouts[0], abouts[-1])]
        assert ends == [("teacher", 10), ("student", 1)]
        assert [one["step"] for one in abouts] == sorted(one["step"] for one in abouts)
        assert all(later["next_seed"] > one["next_seed"] > 10**9 for one, later in pairwise(abouts))
        made = Results.load(run / "results.json").couplings
        assert (made.rollouts.env, made.rollouts.share) == ("drift_of_the_tests", 0.5)
        assert (made.rollouts.collections, made.rollouts.observations) == (len(abouts), 8 * len(abouts))
        # As many as the blocks took.
        assert 8 * (len(abouts) - 1) < made.observations / 2 <= 8 * len(abouts)
        record = json.loads((student_of(run) / "reflow_config.json").read_text())
        assert (record["observations"], record["env"]["type"]) == ("rollout", "drift_of_the_tests")
        assert "of the observations" in markdown(Results.load(run / "results.json"))

    @pytest.fixture
    def cut(self, run: Path, tmp_path: Path) -> Path:
        """The run as if it had been killed some steps after its first checkpoint."""
        return cut_back(Path(shutil.copytree(run, tmp_path / "cut", symlinks=True)), 3)

    def resume(self, run: Path) -> int:
        return main(["reflow", "--resume=true", f"--config_path={run}/checkpoints/last/pretrained_model"])

    def test_a_resumed_run_ends_in_the_same_bits(self, run: Path, cut: Path) -> None:
        steps = [one.about.step for one in known_collections(run / "observations", 10**6)]
        # Otherwise the comparison would say little: one at the very step of the checkpoint, or after it.
        assert max(steps) >= 3
        assert self.resume(cut) == 0
        for file in ("pretrained_model/model.safetensors", "training_state/master_weights.safetensors"):
            whole, resumed = (load_file(path / "checkpoints" / "000006" / file) for path in (run, cut))
            assert all(torch.equal(whole[key], resumed[key]) for key in whole)
        assert len(known_collections(cut / "observations", 10**6)) == len(steps)

    def test_what_a_checkpoint_has_seen_must_be_there(self, cut: Path, capsys: Capture) -> None:
        first = cut / "observations" / "collection_000000" / "collection.json"
        first.write_text(json.dumps(json.loads(first.read_text()) | {"observations": 7}))
        assert self.resume(cut) == 2
        assert "it holds 8 frames" in " ".join(capsys.readouterr().err.split())
        shutil.rmtree(cut / "observations")
        assert self.resume(cut) == 2
        assert "collections of observations, of which" in " ".join(capsys.readouterr().err.split())

    def test_every_round_collects_its_own(self, checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        shorter = ("--rounds=2", "--steps=1", "--save_freq=0", "--measure.num_observations=2")
        assert main(options(checkpoint, dataset_root, output, *ROLLOUT, *shorter)) == 0
        files = (output / f"round_{n}/observations/collection_000000/collection.json" for n in (1, 2))
        first, second = (json.loads(file.read_text()) for file in files)
        # The student of the first round is measured and solved as the teacher was, and acts as such.
        assert [(one["acted_by"], one["num_steps"]) for one in (first, second)] == [("teacher", 10)] * 2
        assert 10**9 < first["next_seed"] < 10**9 + 10**7 < second["next_seed"]

    def test_a_run_that_fails_leaves_nothing(
        self, checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        arguments = options(checkpoint, dataset_root, tmp_path / "out", *ROLLOUT, "--env.state_dim=5")
        said = refused(arguments, capsys, tmp_path)
        assert "observation.state has shape (5,), but the checkpoint was trained with (3,)" in said

    def test_several_processes_are_refused(
        self, tiny_policy: FlowPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(collect_module, "current", lambda: SimpleNamespace(count=2))
        job = build(ReflowJobConfig, {**BASE, **DRIFT, "output_dir": str(tmp_path)})
        with (
            pytest.raises(UserError, match="observations=rollout: 2 processes train together"),
            run_observations(job, make_observations(4), tiny_policy, tiny_policy),
        ):
            pass


BASE = {"teacher.path": "t", "dataset.repo_id": "d", "output_dir": "o"}
DRIFT = {"observations": "rollout", "env.type": "drift_of_the_tests"}


@pytest.mark.parametrize(("values", "said"), [
    ({"observations": "rollout"}, r"observations=rollout needs an environment .*--env.type"),
    ({"env.type": "drift_of_the_tests"}, r"env.type=drift_of_the_tests: .*--observations=rollout"),
    ({**DRIFT, "buffer.uses_per_coupling": "null"}, r"observations=rollout: with buffer.uses_per_coupling=null"),
    ({"collect.share": "0.2"}, r"collect: .*--observations=rollout"),
    ({**DRIFT, "env.type": "moon"}, r"env.type=moon: choose one of .*drift"),
    ({"observations": "dreams"}, r"observations=dreams: give dataset \| rollout"),
    ({**DRIFT, "collect.share": "0"}, r"collect.share=0.0: give a number above 0"),
    ({**DRIFT, "method.real_data_share": "0.1"}, r"method.type=reflow .*demonstrated actions"),
    ({**DRIFT, "method.type": "snapflow"}, r"method.type=snapflow .*demonstrated actions"),
    ({**DRIFT, "couplings.path": "store"}, r"couplings.path=store were made on a dataset's"),
])  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(ReflowJobConfig, {**BASE, **values})
