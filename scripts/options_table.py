"""Write src/chordflow/options.json: the options of every verb, for helps and refusals that import nothing heavy.

usage: python scripts/options_table.py
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lerobot.envs.configs import EnvConfig

from chordflow.cli.help import VerbHelp, of_config
from chordflow.cli.jobs import CONFIGS
from chordflow.demo.run import DemoConfig
from chordflow.refusing import TABLE, Option


def document() -> str:
    """The file: a line for each option. Usages, common options and texts stay as they are in it."""
    configs = {**CONFIGS, "demo": DemoConfig}
    entries = {
        key: json.dumps(entry) if isinstance(entry, str) else _entry(of_config(key, configs[key], {}))
        for key, entry in json.loads(TABLE.read_text(encoding="utf-8")).items()
    }
    return "{" + ",\n".join(f"{json.dumps(key)}: {entry}" for key, entry in entries.items()) + "}\n"


def _entry(known: VerbHelp) -> str:
    rows = ",\n    ".join(json.dumps(_row(option), ensure_ascii=False) for option in known.options)
    head = {"title": known.title, "usage": known.usage, "common": known.common}
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    return "{\n  " + ",\n  ".join([*fields, f'"options": [\n    {rows}]']) + "}"


def _row(option: Option) -> dict[str, Any]:
    if option.name == "env.type":
        # The others are whatever is installed.
        own = [
            n
            for n, c in EnvConfig.get_known_choices().items()
            if c.__module__.startswith(("lerobot.", "lerobot_env_detour"))
        ]
        option = dataclasses.replace(option, kind=" | ".join(sorted(own)))
    return {name: value for name, value in dataclasses.asdict(option).items() if value not in ("", ())}


if __name__ == "__main__":
    TABLE.write_text(document(), encoding="utf-8")
    print(f"wrote {TABLE}")
