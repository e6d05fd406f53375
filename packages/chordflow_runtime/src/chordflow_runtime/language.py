"""The instruction as tokens, as LeRobot's processors make them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from chordflow_runtime.images import Floats
from chordflow_runtime.manifest import RunnerError


def ensure_newline(text: str, _state: Mapping[str, Floats]) -> str:
    """The text with a newline at its end (SmolVLA, pi0)."""
    return text if text.endswith("\n") else f"{text}\n"


def pi05_state(text: str, state: Mapping[str, Floats]) -> str:
    """The text in pi0.5's prompt, with the normalised state as the numbers of 256 bins."""
    text = text.strip().replace("_", " ").replace("\n", " ")
    places = np.digitize(state["observation.state"], bins=np.linspace(-1, 1, 257)[:-1]) - 1
    return f"Task: {text}, State: {' '.join(map(str, places))};\nAction: "


STEPS = {"ensure_newline": ensure_newline, "pi05_state": pi05_state}
"""The kinds of steps that a manifest's template may have."""


class Language:
    """From an instruction to tokens: the manifest's `language`, and the file of its tokenizer."""

    def __init__(self, entry: Mapping[str, Any], tokenizer: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_length = int(entry["max_length"])
        if entry["truncation"]:
            self._tokenizer.enable_truncation(self._max_length)
        # A graph that takes any length was traced for 2 tokens or more.
        self._least = {"max_length": self._max_length, "longest": 2}[entry["padding"]]
        self._pads_left = {"left": True, "right": False}[entry["padding_side"]]
        self._pad_id = int(entry["pad_id"])
        self._template = [STEPS[step["kind"]] for step in entry["template"]]
        self._has_warned = False

    def __call__(
        self, task: object, state: Mapping[str, Floats]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens and their mask, of the instruction and the normalised state, by its key."""
        # A batch of one, as LeRobot's data loader gives it, means the same.
        text = task[0] if isinstance(task, list | tuple) and len(task) == 1 else task
        # What could not be decoded stands in a string as half a character.
        if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RunnerError(f"task is {task!r}; give the instruction as a string.")
        for write in self._template:
            text = write(text, state)
        encoded = self._tokenizer.encode(text)
        if encoded.overflowing and not self._has_warned:
            self._has_warned = True
            what = f"task has more than the policy's {self._max_length} tokens"
            warnings.warn(f"{what}; what is beyond is cut off, as in LeRobot", stacklevel=2)
        if (count := len(encoded.ids)) > self._max_length:
            raise RunnerError(f"task has {count} tokens; the policy takes {self._max_length}: shorten it.")
        missing = max(0, self._least - count)
        pads = (missing, 0) if self._pads_left else (0, missing)
        tokens = np.pad(np.array(encoded.ids, dtype=np.int64), pads, constant_values=self._pad_id)
        return tokens, np.pad(np.array(encoded.attention_mask, dtype=bool), pads)
