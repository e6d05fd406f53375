"""Episodes of several policies side by side, as an animated picture.

Shapes: H, W height and width of an environment's frame in pixels.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from chordflow.errors import UserError
from chordflow.results.files import write_whole
from chordflow.results.schema import Clip

Frame = NDArray[np.uint8]

MAX_BYTES = 2_000_000
"""Size that a picture keeps below, by fewer colours first and smaller frames then."""

MAX_CLIP_SIDE, MAX_CLIP_FRAMES, MAX_CLIP_BYTES = 256, 150, 12_000_000
"""Bounds of a clip of episodes: pixels of a frame, frames of an episode, bytes of the file."""

# Okabe and Ito's green and vermilion; the tick and the cross tell the same without colour.
SUCCESS, FAILURE, RUNNING = (0, 158, 115), (213, 94, 0), (190, 190, 190)
"""Border of an episode that was solved, that was not, and that still runs."""

_PAPER, _INK = (255, 255, 255), (34, 34, 34)
_COLOURS = (128, 64, 32)
_BORDER, _GAP = 4, 8


def save_side_by_side(
    columns: Mapping[str, Sequence[Sequence[Frame]]],
    path: str | Path,
    *,
    outcomes: Mapping[str, Sequence[bool]] | None = None,
    fps: float = 10,
    scale: int = 3,
    hold_s: float = 1.5,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write a GIF with a column for each policy and a row for each episode.

    An episode that is over keeps its last frame and, where its outcome is given, takes a green border with a
    tick or a red one with a cross.

    Args:
        columns: episodes by label, the label drawn above; each episode its frames, uint8 of shape (H, W, 3),
            all of one size. Every column has the same episodes in the same order.
        path: where; an older file is replaced whole.
        outcomes: whether each episode was solved, by the same labels.
        fps: frames a second; a GIF counts time in hundredths of a second.
        scale: screen pixels for a pixel of the environment, whole so that pixels stay square.
        hold_s: seconds that the end is shown before the animation starts again.
        max_bytes: size that the file keeps below.

    Returns:
        The path.

    Raises:
        ValueError: if the columns hold no frame or differ in their episodes, frames or outcomes.
        UserError: if the file cannot be written, or does not fit into `max_bytes` at the smallest scale.
    """
    _check(columns, outcomes, fps, scale)
    times = max(len(episode) for episodes in columns.values() for episode in episodes)
    duration = max(2, round(100 / fps)) * 10
    for smaller in range(scale, 0, -1):
        picture = _painter(columns, outcomes, smaller)
        for colours in _COLOURS:
            data = _gif(picture, times, colours, duration, round(1000 * hold_s))
            if len(data) <= max_bytes:
                return write_whole(path, data)
    raise UserError(
        f"{path} would have {len(data)} bytes of at most {max_bytes}; give fewer or shorter episodes."
    )


def _check(
    columns: Mapping[str, Sequence[Sequence[Frame]]],
    outcomes: Mapping[str, Sequence[bool]] | None,
    fps: float,
    scale: int,
) -> None:
    if fps <= 0 or scale < 1:
        raise ValueError(f"fps is {fps} and scale {scale}; both must be above zero.")
    if len({len(episodes) for episodes in columns.values()} - {0}) != 1:
        counts = {label: len(episodes) for label, episodes in columns.items()}
        raise ValueError(f"columns have episodes {counts}; each needs the same number, at least one.")
    frames = [frame for episodes in columns.values() for episode in episodes for frame in episode]
    if not all(len(episode) for episodes in columns.values() for episode in episodes):
        raise ValueError("an episode has no frame.")
    kinds = {(frame.shape, frame.dtype.name) for frame in frames}
    if len(kinds) != 1 or frames[0].ndim != 3 or frames[0].shape[2] != 3 or frames[0].dtype != np.uint8:
        raise ValueError(f"frames are {sorted(kinds)}; all must be uint8 of one shape (H, W, 3).")
    if outcomes is not None:
        for label, episodes in columns.items():
            if len(outcomes.get(label, ())) != len(episodes):
                raise ValueError(
                    f"outcomes of {label!r} must be one for each of its {len(episodes)} episodes."
                )


def _painter(
    columns: Mapping[str, Sequence[Sequence[Frame]]],
    outcomes: Mapping[str, Sequence[bool]] | None,
    scale: int,
) -> Callable[[int], Image.Image]:
    """What draws the whole picture at a time."""
    episodes = list(columns.values())
    height, width = (side * scale + 2 * _BORDER for side in episodes[0][0][0].shape[:2])
    font = _font(max(9, min(16, 5 * scale)))
    head = round(1.7 * font.size)
    page = Image.new(
        "RGB",
        (_GAP + len(columns) * (width + _GAP), head + len(episodes[0]) * (height + _GAP)),
        _PAPER,
    )
    draw = ImageDraw.Draw(page)
    for x, label in enumerate(columns):
        centre = _GAP + x * (width + _GAP) + width / 2
        draw.text((centre, head / 2), _fitted(label, font, width + _GAP - 2), _INK, font, anchor="mm")

    def picture(time: int) -> Image.Image:
        filled = page.copy()
        for x, (label, column) in enumerate(columns.items()):
            for y, episode in enumerate(column):
                over = time >= len(episode) - 1
                solved = outcomes[label][y] if outcomes is not None and over else None
                cell = _cell(episode[min(time, len(episode) - 1)], solved, scale)
                filled.paste(cell, (_GAP + x * (width + _GAP), head + y * (height + _GAP)))
        return filled

    return picture


def _cell(frame: Frame, solved: bool | None, scale: int) -> Image.Image:
    """One frame, enlarged, with its border and mark."""
    image = Image.fromarray(frame)
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    colour = RUNNING if solved is None else SUCCESS if solved else FAILURE
    cell = Image.new("RGB", (large.width + 2 * _BORDER, large.height + 2 * _BORDER), colour)
    cell.paste(large, (_BORDER, _BORDER))
    if solved is not None:
        size = max(8, 6 * scale)
        left, top = cell.width - _BORDER - size, _BORDER
        draw = ImageDraw.Draw(cell)
        draw.rectangle((left, top, left + size, top + size), fill=colour)
        strokes = [[(0.2, 0.55), (0.42, 0.77), (0.8, 0.25)]] if solved else _CROSS
        for stroke in strokes:
            points = [(left + x * size, top + y * size) for x, y in stroke]
            draw.line(points, fill=_PAPER, width=max(1, size // 7))
    return cell


_CROSS = [[(0.24, 0.24), (0.76, 0.76)], [(0.24, 0.76), (0.76, 0.24)]]


def _gif(picture: Callable[[int], Image.Image], times: int, colours: int, duration: int, hold: int) -> bytes:
    """All times in one palette, without dither: what does not move costs nothing."""
    palette = _palette([picture(round(t)) for t in np.linspace(0, times - 1, min(times, 6))], colours)
    frames = [picture(t).quantize(palette=palette, dither=Image.Dither.NONE) for t in range(times)]
    file = io.BytesIO()
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[duration] * (len(frames) - 1) + [max(duration, hold)],
        loop=0,
        optimize=True,
        disposal=1,
    )
    return file.getvalue()


def _palette(pictures: Sequence[Image.Image], colours: int) -> Image.Image:
    """A palette from pictures spread over time, the last one with all its marks among them."""
    width, height = pictures[0].size
    montage = Image.new("RGB", (width, height * len(pictures)))
    for row, picture in enumerate(pictures):
        montage.paste(picture, (0, row * height))
    return montage.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings a font of many scripts, and the same one as in the other pictures.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _fitted(label: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The label, cut where it would run into the next column."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"


Filmed = tuple[int, bool, NDArray[np.uint8] | None]
"""An episode: its seed, whether it was solved, and its frames, uint8 of shape (T, H, W, 3), where it has any."""


def save_clip(
    columns: Mapping[str, Sequence[Filmed]], folder: Path, name: str, max_bytes: int = MAX_CLIP_BYTES
) -> Clip:
    """Draw the episodes that have frames side by side: the run is shown, and not a choice from it.

    Long episodes and large pictures are thinned out.

    Args:
        columns: episodes by label; every column has the same starts in the same order.
        folder: where the results lie.
        name: of the file in it.
        max_bytes: size that the file keeps below.

    Returns:
        What the results say of it.
    """
    filmed = {label: [(e[0], e[1], e[2]) for e in run if e[2] is not None] for label, run in columns.items()}
    outcomes = {label: [success for _, success, _ in run] for label, run in filmed.items()}
    (folder / name).parent.mkdir(exist_ok=True)
    save_side_by_side(
        {label: [_thinned(frames) for *_, frames in run] for label, run in filmed.items()},
        folder / name,
        outcomes=outcomes,
        scale=1,
        max_bytes=max_bytes,
    )
    seeds = [seed for seed, *_ in next(iter(filmed.values()))]
    return Clip(name, list(columns), seeds, [list(row) for row in zip(*outcomes.values(), strict=True)])


def _thinned(frames: NDArray[np.uint8]) -> list[Frame]:
    """Every k-th frame and pixel, and the last frame."""
    every = -(-len(frames) // MAX_CLIP_FRAMES)
    pixel = -(-max(frames.shape[1:3]) // MAX_CLIP_SIDE)
    kept = list(frames[::every, ::pixel, ::pixel])
    return kept if (len(frames) - 1) % every == 0 else [*kept, frames[-1, ::pixel, ::pixel]]
