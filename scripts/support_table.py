"""Fill the tables of policies, between markers: a short one in the READMEs, the whole in docs/families.md.

usage: python scripts/support_table.py

The rows come from the registry, the adapters and LeRobot's own configs.
"""

from __future__ import annotations

import re
from pathlib import Path

from lerobot.policies.pretrained import PreTrainedPolicy

from chordflow.policies import FlowPolicy
from chordflow.policies.registry import adapter_for, own_families
from chordflow.results.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
FAMILIES = ROOT / "docs" / "families.md"
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
        rows.append(
            (
                f"`{family}`",
                f"t = {adapter.noise_at}",
                f"`{adapter.steps_field}`, " + (_default_steps(adapter) or "the base model's"),
                adapter.encoded_once,
                ", ".join(f"`{role}`" for role in adapter.default_train_roles),
                _real_time_chunking(adapter),
                f"`lerobot[{extra}]`",
            )
        )
    return _table(rows)


def _default_steps(adapter: type[FlowPolicy]) -> str:
    default = adapter.policy_class.config_class.__dataclass_fields__[adapter.steps_field].default
    return "" if default is None else str(default)


def _real_time_chunking(adapter: type[FlowPolicy]) -> str:
    if adapter.supports_real_time_chunking:
        return "LeRobot's"
    has_its_own = adapter.policy_class.supports_rtc is not PreTrainedPolicy.supports_rtc
    return "the policy's own, not measured" if has_its_own else "no"


def short() -> str:
    """The READMEs' rows: family, steps by default, and what to install."""
    rows = [("policy", "steps by default", "install")]
    for family, extra in own_families().items():
        default = _default_steps(adapter_for(family))
        rows.append(
            (f"`{family}`", default or "the base model's", f'`pip install "lerobot[{extra}]==0.6.1"`')
        )
    return _table(rows)


def document(path: Path) -> str:
    """A document with its tables made anew."""
    made = short() if path in READMES else supported()
    text, count = _MARKED.subn(lambda _: made, path.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"{path.name} has {count} places for the tables of policies; it must have one")
    return text


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(body)


if __name__ == "__main__":
    # All are made before one is written: a missing marker leaves none behind the others.
    for path, text in [(path, document(path)) for path in (*READMES, FAMILIES)]:
        write_whole(path, text.encode("utf-8"))
