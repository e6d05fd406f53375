"""Fill the READMEs' tables of policies, between markers: families with an adapter, and what stands in others' way.

usage: python scripts/support_table.py

The rows come from the registry, the adapters and LeRobot's own configs.
"""

from __future__ import annotations

import re
from pathlib import Path

from lerobot.policies.pretrained import PreTrainedPolicy

from chordflow.policies.lerobot_policy import LeRobotFlowPolicy
from chordflow.policies.obstacles import OBSTACLES
from chordflow.policies.registry import adapter_for, own_families
from chordflow.results.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
_MARKED = re.compile(r"(?<=<!-- support table -->\n).*?(?=<!-- end of support -->)", re.DOTALL)


def supported() -> str:
    """One row for each family that chordflow has an adapter for."""
    rows = [
        (
            "policy",
            "noise at",
            "number of steps",
            "encoded once",
            "trains by default",
            "real-time chunking",
            "install",
        )
    ]
    for family, extra in own_families().items():
        adapter = adapter_for(family)
        assert issubclass(adapter, LeRobotFlowPolicy)
        default = adapter.policy_class.config_class.__dataclass_fields__[adapter.steps_field].default
        rows.append(
            (
                f"`{family}`",
                f"t = {adapter.noise_at}",
                f"`{adapter.steps_field}`, " + (str(default) if default is not None else "the base model's"),
                adapter.encoded_once,
                ", ".join(f"`{role}`" for role in adapter.default_train_roles),
                _real_time_chunking(adapter),
                f"`lerobot[{extra}]`",
            )
        )
    return _table(rows)


def _real_time_chunking(adapter: type[LeRobotFlowPolicy]) -> str:
    if adapter.supports_real_time_chunking:
        return "LeRobot's"
    has_its_own = adapter.policy_class.supports_rtc is not PreTrainedPolicy.supports_rtc
    return "the policy's own, not measured" if has_its_own else "no"


def obstacles() -> str:
    """One row for each flow-matching family of LeRobot's that has none."""
    rows = [("policy", "where", "what stands in the way", "next step")]
    rows += [(f"`{o.family}`", f"`{o.where}`", o.reason, o.next_step) for o in OBSTACLES]
    return _table(rows)


def document(text: str) -> str:
    """A README with its tables made anew."""
    note = (
        "<details><summary>Not yet, and what stands in the way (LeRobot 0.6.1, file and function)</summary>\n\n"
        f"{obstacles()}\n</details>\n"
    )
    made, count = _MARKED.subn(lambda _: f"{supported()}\n{note}", text)
    if count != 1:
        raise ValueError(f"there are {count} places for the tables of policies; there must be one")
    return made


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(body)


if __name__ == "__main__":
    # Both are made before one is written: a missing marker leaves neither behind the other.
    for readme, text in [(readme, document(readme.read_text(encoding="utf-8"))) for readme in READMES]:
        write_whole(readme, text.encode("utf-8"))
