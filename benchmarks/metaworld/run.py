"""Meta-World from nothing: demonstrations, a teacher, a student, and paired episodes of both.

    python benchmarks/metaworld/run.py --size=smoke --output_dir=outputs/metaworld

Each stage leaves a folder; one that is there is not made again, and an interrupted stage goes on where it was. The
commands of LeRobot and chordflow are printed as they are run. The results go to OUTPUT_DIR/SIZE.json, and are copied to
benchmarks/metaworld/results/ and shown in README.md with --publish.

OUTPUT/dataset    the experts' demonstrations, a LeRobotDataset v3
OUTPUT/vlm        the small vision-language model that the teacher's config names
OUTPUT/teacher    a stock SmolVLA, trained by lerobot-train
OUTPUT/student    what `chordflow reflow` leaves
OUTPUT/evaluate   what `chordflow evaluate` leaves
OUTPUT/first_chunks.json    how often the first chunks of two-sided tasks lie between two ways to act
OUTPUT/lerobot    lerobot-eval beside `chordflow evaluate --noise=lerobot`
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import commands
import first_chunks
import torch
from commands import REPO_ID
from record import record
from results import DOCUMENT, RESULTS, agreement, published, summary, table
from sizes import SIZES, TWO_SIDED, Size

from chordflow.demo.tiny_vlm import build_tiny_vlm
from chordflow.errors import UserError
from chordflow.experiments.run_folder import only_run
from chordflow.policies import relocate
from chordflow.results.files import put_between, write_whole
from lerobot_env_metaworld_light import LightMetaworldConfig
from lerobot_env_metaworld_light.machine import check_machine


class Run:
    """One run of the benchmark in a folder.

    Args:
        size: what is run.
        output: the folder.
    """

    def __init__(self, size: Size, output: Path) -> None:
        self.size = size
        self.output = output
        self.seconds = output / "seconds.json"
        self.env = LightMetaworldConfig(
            task=",".join(size.tasks),
            obs=size.obs,
            image_size=size.image_size,
            episode_length=size.episode_length,
        )

    def stages(self) -> dict[str, Callable[[], None]]:
        """What makes each folder, in the order in which they are made."""
        stages = {
            "vlm": self.make_vlm,
            "dataset": self.record,
            "teacher": self.train,
            "student": self.reflow,
            "evaluate": self.evaluate,
        }
        if set(self.size.tasks) & set(TWO_SIDED):
            stages["first_chunks"] = self.look_at_first_chunks
        if self.size.lerobot_episodes:
            stages["lerobot"] = self.compare_with_lerobot
        return stages

    def make(self) -> None:
        """Runs the stages that are not done.

        Raises:
            ValueError: if the folder holds a run of other settings, or a file in it is broken.
            RuntimeError: if a command fails.
            UserError: if another process works there.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output_dir={self.output} is a file; name a folder.")
        self.output.mkdir(parents=True, exist_ok=True)
        with only_run(self.output):
            self._claim()
            self._make_missing()

    def _make_missing(self) -> None:
        seconds = self._spent()
        self._follow_a_move()
        for name, stage in self.stages().items():
            done = self.output / f"{name}.done"
            if done.exists():
                print(f"== {name}: done before", flush=True)
                continue
            print(f"== {name}", flush=True)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            stage()
            spent = seconds.setdefault(name, {"wall": 0.0, "cpu": 0.0})
            spent["wall"] += round(time.perf_counter() - wall, 1)
            spent["cpu"] += round(_cpu_seconds() - cpu, 1)
            write_whole(self.seconds, f"{json.dumps(seconds, indent=2)}\n".encode())
            done.touch()

    def _follow_a_move(self) -> None:
        """Points teacher and student to the vision-language model where the whole folder was moved."""
        vlm = self.output / "vlm"
        for name in ("teacher", "student"):
            configs = sorted((self.output / name).rglob("config.json"))
            if any(json.loads(file.read_text())["vlm_model_name"] != str(vlm) for file in configs):
                relocate(self.output / name, vlm)

    def _spent(self) -> dict[str, dict[str, float]]:
        """What the stages have taken so far."""
        if not self.seconds.exists():
            return {}
        try:
            seconds: dict[str, dict[str, float]] = json.loads(self.seconds.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.seconds} is broken ({error}); remove it to go on, and the times of what is done are lost."
            ) from error
        return seconds

    def _claim(self) -> None:
        """Notes the settings in the folder."""
        settings = json.dumps(dataclasses.asdict(self.size), indent=2) + "\n"
        file = self.output / "settings.json"
        if file.exists() and file.read_text(encoding="utf-8") != settings:
            raise ValueError(
                f"output_dir={self.output} holds a run of another size or of other settings; name a new folder."
            )
        write_whole(file, settings.encode())

    def make_vlm(self) -> None:
        """The model's folder; every word of an instruction is one token."""
        from lerobot_env_metaworld_light.tasks import description, tasks_of

        instructions = [
            description(task) for group in tasks_of(self.env.task or "").values() for task in group
        ]
        _remove(self.output / "vlm")
        build_tiny_vlm(self.output / "vlm", sorted(set(instructions)), self.size.vlm)

    def record(self) -> None:
        """The experts' demonstrations."""
        if (self.output / "dataset").exists():
            return
        begin = time.perf_counter()

        def say(task: str, done: int, total: int) -> None:
            if done % 25 == 0 or done == total:
                print(f"{done}/{total} episodes, {task}, {time.perf_counter() - begin:.0f} s", flush=True)

        record(
            self.env,
            self.output / "dataset",
            self.size.demonstrations,
            self.size.eval_split,
            say,
            REPO_ID,
            self.size.disturbed,
        )

    def train(self) -> None:
        """The teacher, by lerobot-train; then a copy of its last checkpoint that can be moved about."""
        training = self.output / "teacher_training"
        last = training / "checkpoints" / "last"
        if last.exists():
            arguments = ["--resume=true", f"--config_path={last / 'pretrained_model' / 'train_config.json'}"]
        else:
            _remove(training)
            arguments = commands.lerobot_train(self.size)
        command = (
            ["-m", "chordflow.demo.cached_train"] if self.size.keep_frames else [_script("lerobot-train")]
        )
        self._python([*command, *arguments], shown=["lerobot-train", *arguments])
        teacher = self.output / "teacher"
        _remove(teacher)
        shutil.copytree((last / "pretrained_model").resolve(), teacher)
        relocate(teacher, (self.output / "vlm").resolve())

    def reflow(self) -> None:
        """The student."""
        self._chordflow(
            "reflow",
            "student",
            "checkpoints/last/pretrained_model/train_config.json",
            commands.reflow(self.size),
        )

    def evaluate(self) -> None:
        """Gap, curvature, latency and paired episodes of teacher (ten, two and one steps) and student."""
        self._chordflow("evaluate", "evaluate", "evaluate_config.json", commands.evaluate(self.size))

    def look_at_first_chunks(self) -> None:
        """The first chunks of teacher and student on two-sided tasks."""
        first_chunks.measure(self.size, self.output)

    def compare_with_lerobot(self) -> None:
        """The student's episodes by lerobot-eval, and by chordflow with LeRobot's noise."""
        folder = self.output / "lerobot"
        arguments = commands.lerobot_eval(self.size)
        _remove(folder)
        self._python([_script("lerobot-eval"), *arguments], shown=["lerobot-eval", *arguments])
        arguments = commands.evaluate_like_lerobot(self.size)
        self._chordflow("evaluate", "lerobot/chordflow", "evaluate_config.json", arguments)
        differences = agreement(folder)
        if differences:
            raise RuntimeError("chordflow and lerobot-eval do not agree: " + "; ".join(differences))

    def _chordflow(self, verb: str, folder: str, config: str, arguments: list[str]) -> None:
        """Runs a command of chordflow that leaves `folder`; goes on with it where it has left `config` there."""
        if (self.output / folder / config).exists():
            arguments = ["--resume=true", f"--config_path={folder}/{config}"]
        else:
            _remove(self.output / folder)
        self._python(["-m", "chordflow", verb, *arguments], shown=["chordflow", verb, *arguments])

    def _python(self, arguments: list[str], shown: list[str]) -> None:
        """Runs Python in the output folder.

        Raises:
            RuntimeError: if it fails.
        """
        print(f"({self.output}) $ {shlex.join(shown)}", flush=True)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        code = subprocess.run([sys.executable, *arguments], cwd=self.output, env=environment).returncode
        if code != 0:
            raise RuntimeError(f"{shlex.join(shown[:2])} ended with {code}; its lines above say why.")


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def check_device(name: str, size: Size) -> None:
    """Refuses a size that wants a GPU where there is none, before anything is recorded.

    Raises:
        ValueError: if so.
    """
    if size.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"size={name} runs on a GPU, and torch finds none here; run it where there is one, or take another size."
        )


def main() -> int:
    """Reads the command line; runs what is missing, saves and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="smoke")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/metaworld"))
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the results to benchmarks/metaworld/results and its README",
    )
    options = parser.parse_args()
    size, output = SIZES[options.size], options.output_dir.resolve()
    try:
        check_machine()
        check_device(options.size, size)
        Run(size, output).make()
    except (UserError, ValueError, RuntimeError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    result = summary(options.size, size, output)
    file = output / f"{options.size}.json"
    write_whole(file, f"{json.dumps(result, indent=2)}\n".encode())
    if options.publish:
        RESULTS.mkdir(exist_ok=True)
        shutil.copy(file, RESULTS / file.name)
        put_between(DOCUMENT, options.size, published(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
