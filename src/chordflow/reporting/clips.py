"""Pictures and clips as parts of the page: read from beside the results, never from anywhere else."""

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from chordflow.results.episodes import Clip
from chordflow.results.wording import clean, plural, size

LARGEST = 16_000_000
"""Bytes of one clip that a page takes in; a larger one is named, and lies beside the page."""

VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
PICTURES = {".gif": "image/gif", ".webp": "image/webp", ".png": "image/png", ".apng": "image/apng"}


@dataclass(frozen=True)
class Embedded:
    """A clip as the page shows it.

    Attributes:
        clip: what the results say of it.
        source: the whole file as a data URI; empty where it could not be taken in.
        still: its first frame as a data URI, for moving pictures that have no controls of their own.
        video: whether it is a video.
        width: of the still in pixels, so that nothing jumps while the page loads.
        height: the same.
        note: why it is not shown, a sentence; empty where it is.
        text: what happens in it.
    """

    clip: Clip
    source: str = ""
    still: str = ""
    video: bool = False
    width: int = 0
    height: int = 0
    note: str = ""
    text: str = ""


def embed(clip: Clip, folder: Path) -> Embedded:
    """Take a clip into the page.

    Args:
        clip: what the results say of it; its path must lead to a file inside the folder.
        folder: where the results lie.

    Returns:
        The clip, or a note why it is not shown: nothing about a clip keeps a page from being made.
    """
    text, name = told(clip), clean(clip.path)

    def missing(why: str) -> Embedded:
        return Embedded(clip, note=f"{name} {why}", text=text)

    try:
        path = (folder / clip.path).resolve()
        # Results may come from others: what they name outside their folder is not theirs to show.
        if not path.is_relative_to(folder.resolve()):
            return missing("lies outside the results' folder and is not shown.")
        if not path.is_file():
            return missing("is not there any more.")
        kind = path.suffix.lower()
        if kind not in VIDEOS | PICTURES:
            return missing("is of a kind that pages do not show.")
        if path.stat().st_size > LARGEST:
            return missing(
                f"has {size(path.stat().st_size)}, too much for a page; it lies beside the results."
            )
        data = path.read_bytes()
        source = data_uri((VIDEOS | PICTURES)[kind], data)
        if kind in VIDEOS:
            return Embedded(clip, source, video=True, text=text)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            still = io.BytesIO()
            image.convert("RGB").save(still, format="PNG", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return missing("cannot be read.")
    return Embedded(clip, source, data_uri("image/png", still.getvalue()), False, width, height, "", text)


def told(clip: Clip) -> str:
    """What happens in a clip, in words: how often each column succeeds."""
    number = len(clip.outcomes)
    columns = []
    for index, name in enumerate(clip.columns):
        won = sum(row[index] for row in clip.outcomes if index < len(row))
        columns.append(f"{clean(name)} succeeds in {won}")
    text = f"{plural(number, 'episode')} from the same starts: {', '.join(columns)}"
    seeds = f" (seeds {', '.join(map(str, clip.seeds))})" if clip.seeds else ""
    return f"{text}{seeds}."


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(encoded: str) -> str:
    """A PNG in base64 as a data URI; empty if it is none.

    Args:
        encoded: as in `WideObservation.pictures`.
    """
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return data_uri("image/png", data) if data.startswith(b"\x89PNG\r\n\x1a\n") else ""
