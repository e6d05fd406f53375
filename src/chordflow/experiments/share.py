"""Uploads to the Hugging Face Hub, and logs to Weights & Biases by LeRobot's own logger."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from lerobot.common.wandb_utils import WandBLogger
from lerobot.configs.default import WandBConfig as LeRobotWandBConfig

from chordflow import stopping
from chordflow.console import doing, say
from chordflow.disk import write_whole
from chordflow.errors import UserError, reason
from chordflow.options import plain
from chordflow.policies.files import CARD, find_checkpoint, read_config
from chordflow.results.schema import Results
from chordflow.training.distributed import current

Licence = dict[str, str]
"""What front matter says of a licence: `license`, and `license_name` and `license_link` of one that the Hub lacks."""

WANDB = "wandb"
"""Folder of what Weights & Biases keeps, in a run's folder."""


# ---- The Hub --------------------------------------------------------------------------------------------


@dataclass
class HubConfig:
    """Whether what is made goes to the Hugging Face Hub, under LeRobot's names.

    Attributes:
        push_to_hub: upload what was made, with its card, to policy.repo_id when all else is done; where that fails, it
            stays here, and the run says how to upload it later.
        repo_id: where on the Hub, as USER/NAME.
        private: whether a repository that is made for it is private; by default as the account has it.
    """

    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool | None = None

    def __post_init__(self) -> None:
        if not self.push_to_hub:
            if self.repo_id is not None:
                raise UserError(
                    f"policy.repo_id={self.repo_id}: give --policy.push_to_hub=true too, or null."
                )
            return
        try:
            validate_repo_id(str(self.repo_id))
            _user, _name = str(self.repo_id).split("/")
        except ValueError as error:
            needs = "policy.push_to_hub=true needs policy.repo_id=USER/NAME"
            raise UserError(f"{needs}, which is {self.repo_id or 'missing'}.") from error


def push(config: HubConfig, folder: Path, card: Callable[[str, Licence], str], source: Any) -> None:
    """Uploads a folder with a card in it, if that is asked for.

    Args:
        config: whether, and where to.
        folder: what is uploaded.
        card: the card of a repository, from its name and a licence.
        source: a `SourceConfig`, of the checkpoint whose licence it has.
    """
    if not config.push_to_hub:
        return
    repo_id = str(config.repo_id)
    visible = {None: "", True: " --private", False: " --no-private"}[config.private]
    command = f"hf upload {repo_id} {shlex.quote(str(folder))} .{visible}"
    later = f"everything is in {folder}; upload it with:"
    try:
        with stopping.noting(lambda: f"{later} {command}"), doing("Uploading to the Hub"):
            write_whole(folder / CARD, card(repo_id, licence(source)).encode(errors="replace"))
            url = HfApi().create_repo(repo_id, private=config.private, exist_ok=True)
            HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by chordflow")
    except Exception as error:
        # Networks, servers and the client's own threads fail in many ways, and none of them takes anything back.
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            command = f"hf auth login && {command}"
        say(f"Hub:     not uploaded ({reason(error)}); {later} {command}")
    else:
        say(f"Hub:     {url}")


def licence(source: Any) -> Licence:
    """The licence of a checkpoint, where its card or its config names one."""
    folder = find_checkpoint(source.path, source.revision)
    found = {"license": read_config(folder).get("license")}
    # There may be no card, and YAML can be broken in many ways.
    with contextlib.suppress(Exception):
        found |= metadata_load(folder / CARD) or {}
    keys = ("license", "license_name", "license_link")
    return {key: value for key in keys if isinstance(value := found.get(key), str)}


# ---- Weights & Biases -----------------------------------------------------------------------------------


@dataclass
class WandBConfig(LeRobotWandBConfig):
    """What goes to Weights & Biases; the same as in lerobot-train.

    Attributes:
        enable: send loss, learning rate, gaps, pictures and the student to Weights & Biases.
        disable_artifact: leave the student's weights out.
        project: that the run belongs to.
        entity: user or team that the project belongs to; by default yours.
        notes: text beside the run.
        run_id: a run to go on with; a resumed run finds its own.
        mode: whether it is sent now, or kept for `wandb sync`; by default online.
        add_tags: tag the run with policy type, seed, dataset and environment.
    """

    mode: Literal["online", "offline", "disabled"] | None = None

    def __post_init__(self) -> None:
        if self.enable and find_spec("wandb") is None:
            raise UserError('wandb.enable=true: wandb is not installed; run: pip install "chordflow[wandb]"')


class RunLogger(WandBLogger):
    """LeRobot's logger, for a run of reflow."""

    def __init__(self, config: Any, family: str) -> None:
        known = config.wandb.run_id or any(config.output_dir.glob(f"{WANDB}/latest-run/run-*.wandb"))
        about = {
            # LeRobot writes into it.
            "wandb": replace(config.wandb),
            "policy": SimpleNamespace(type=family),
            "is_reward_model_training": False,
            "job_name": config.output_dir.name,
            "resume": config.resume and known,
            "to_dict": lambda: plain(config),
        }
        super().__init__(SimpleNamespace(**vars(config) | about))

    def measured(self, results: Results) -> None:
        """Adds the gaps at even Euler steps, as fractions."""
        rows = (row for row in results.gaps if (row.solver, row.grid_power) == ("euler", 1))
        gaps = {f"gap/{row.policy}/{row.num_steps}/{row.reference}": row.rms for row in rows}
        self.log_dict(gaps, self._wandb.run.step, mode="eval")

    def end(self, figures: Path) -> None:
        """Adds the pictures in a folder, and ends the run."""
        images = {f"eval/{file.stem}": self._wandb.Image(str(file)) for file in figures.glob("*.png")}
        self._wandb.log(images, step=self._wandb.run.step)
        self._wandb.finish()


@contextlib.contextmanager
def tracked(config: Any, family: str) -> Iterator[RunLogger | None]:
    """Begins a run on Weights & Biases, where that is asked for, in the first process alone.

    `RunLogger.end` ends it; an error within this context ends it as failed.
    """
    if not (config.wandb.enable and current().first):
        yield None
        return
    try:
        logger = RunLogger(config, family)
    except Exception as error:
        # Whatever it is, nothing is trained yet.
        how = "log in with wandb login, give --wandb.mode=offline, or leave the option out"
        raise UserError(f"wandb.enable=true: no run can be begun ({reason(error)}); {how}.") from error
    say(f"W&B:     {logger._wandb.run.url or logger._wandb.run.dir}")
    try:
        yield logger
    except BaseException:
        logger._wandb.finish(exit_code=1)
        raise
