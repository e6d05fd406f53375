"""What a job has made goes to the Hugging Face Hub; where that fails, all of it stays here and the user is told how."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from chordflow import stopping
from chordflow.console import doing, say
from chordflow.disk import write_whole
from chordflow.errors import UserError, reason
from chordflow.policies.files import CARD, find_checkpoint, read_config

if TYPE_CHECKING:
    from chordflow.experiments.config import SourceConfig

Licence = dict[str, str]
"""What front matter says of a licence: `license`, and `license_name` and `license_link` of one that the Hub lacks."""


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
        if not self.push_to_hub and (self.repo_id, self.private) != (None, None):
            raise UserError(
                f"policy.repo_id={self.repo_id}, policy.private={self.private}: they are about "
                "policy.push_to_hub=true; give it too, or null for both."
            )
        if not self.push_to_hub:
            return
        if self.repo_id is None:
            raise UserError("policy.push_to_hub=true needs --policy.repo_id=USER/NAME.")
        try:
            validate_repo_id(self.repo_id)
            _user, _name = self.repo_id.split("/")
        except ValueError as error:
            raise UserError(
                f"policy.repo_id={self.repo_id} is no name on the Hub; give USER/NAME."
            ) from error


def push(config: HubConfig, folder: Path, card: Callable[[str, Licence], str], source: SourceConfig) -> None:
    """Uploads a folder with a card in it, if that is asked for.

    Args:
        config: whether, and where to.
        folder: what is uploaded.
        card: the card of a repository, from its name and a licence.
        source: the checkpoint whose licence it has.
    """
    if not config.push_to_hub:
        return
    assert config.repo_id is not None
    visible = {None: "", True: " --private", False: " --no-private"}[config.private]
    command = f"hf upload {config.repo_id} {shlex.quote(str(folder))} .{visible}"
    try:
        with (
            stopping.says(lambda: f"everything is in {folder}; upload it with: {command}"),
            doing("Uploading to the Hub"),
        ):
            write_whole(folder / CARD, card(config.repo_id, licence(source)).encode(errors="replace"))
            api = HfApi()
            url = api.create_repo(config.repo_id, private=config.private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload by chordflow")
    except Exception as error:
        # Networks, servers and the client's own threads fail in many ways, and none of them takes anything back.
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            command = f"hf auth login && {command}"
        say(f"Hub:     not uploaded ({reason(error)}); everything is in {folder}, upload it with: {command}")
    else:
        say(f"Hub:     {url}")


def licence(source: SourceConfig) -> Licence:
    """The licence of a checkpoint, where its card or its config names one."""
    folder = find_checkpoint(source.path, source.revision)
    found = {"license": read_config(folder).get("license")}
    # There may be no card, and YAML can be broken in many ways.
    with contextlib.suppress(Exception):
        found |= metadata_load(folder / CARD) or {}
    keys = ("license", "license_name", "license_link")
    return {key: value for key in keys if isinstance(value := found.get(key), str)}
