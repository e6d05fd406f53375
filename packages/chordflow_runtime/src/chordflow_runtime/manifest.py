"""Reads `manifest.json` of an exported folder, and makes sure that its files are those that were exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
VERSION = 1
"""The newest version of the format that this package reads."""

Manifest = dict[str, Any]


class RunnerError(ValueError):
    """A folder, an observation or a setting cannot be used.

    The message is one sentence that names the field, the value it had and what to do.
    """


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, which is unchanged, as are all files.

    Raises:
        RunnerError: if the folder holds no policy, one of a newer format, or a file that was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RunnerError(f"{folder} has no {MANIFEST}; give a folder that chordflow export has made.")
    manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    if (kind := manifest["format"]) != "chordflow_policy":
        raise RunnerError(f"{path} has format {kind!r}; give a folder that chordflow export has made.")
    if (version := manifest["version"]) > VERSION:
        raise RunnerError(
            f"{path} has version {version}, and this chordflow_runtime reads up to {VERSION}; install a newer one."
        )
    if manifest.get("sha256") != content_sha256(manifest):
        raise RunnerError(f"{path} was changed; copy it again, or export the policy again.")
    for name, digest in manifest["files"].items():
        _check_file(folder, name, digest)
    return manifest


def content_sha256(manifest: Mapping[str, Any]) -> str:
    """What a manifest says of itself under `sha256`: the digest of all that it says besides."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def listed(manifest: Mapping[str, Any], folder: Path, name: str) -> Path:
    """A file of the folder; RunnerError for one that the manifest does not list with its hash."""
    if name not in manifest["files"]:
        raise RunnerError(f"{folder / MANIFEST} does not list the file {name!r}; export the policy again.")
    return folder / name


def _check_file(folder: Path, name: str, digest: str) -> None:
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
        raise RunnerError(
            f"{folder / MANIFEST} lists {name!r}, which is no file name; export the policy again."
        )
    path = folder / name
    if not path.is_file():
        raise RunnerError(f"{path} is missing; copy the whole folder, or export the policy again.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise RunnerError(
            f"{path} was changed or cut short: its SHA-256 is {found[:12]}..., not {digest[:12]}...; copy it again, or "
            "export the policy again."
        )
