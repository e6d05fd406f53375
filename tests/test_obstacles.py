"""What docs/families.md says of families without adapter is true of the installed LeRobot; read, never imported."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from chordflow.errors import UserError
from chordflow.policies.registry import WITHOUT_ADAPTER, adapter_for, own_families
from script_files import ROOT


class Obstacle(NamedTuple):
    """A row of the document's table."""

    family: str
    where: str
    reason: str
    next_step: str


def rows_of_the_document() -> list[Obstacle]:
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8").split("## Not supported yet")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]
    return [Obstacle(*row) for row in cells]


OBSTACLES = rows_of_the_document()

# A variational autoencoder, DDPM, reinforcement learning, tokens, a learned model, quantised actions.
NO_FLOW = ("act", "diffusion", "gaussian_actor", "pi0_fast", "tdmpc", "vqbet")

SPEC = find_spec("lerobot")
assert SPEC is not None
assert SPEC.submodule_search_locations
POLICIES = Path(SPEC.submodule_search_locations[0]) / "policies"


def families() -> dict[str, Path]:
    """Every policy type that LeRobot registers, and its folder."""
    found = {}
    for file in sorted(POLICIES.glob("*/configuration_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_subclass":
                (name,) = node.args
                assert isinstance(name, ast.Constant)
                found[str(name.value)] = file.parent
    assert len(found) > 15
    return found


def source_of(obstacle: Obstacle) -> ast.FunctionDef:
    file, name = obstacle.where.split(": ")
    class_name, function_name = name.split(".")
    tree = ast.parse((POLICIES / obstacle.family / file).read_text(encoding="utf-8"))
    (found,) = (
        item
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name == class_name
        for item in cls.body
        if isinstance(item, ast.FunctionDef) and item.name == function_name
    )
    return found


def words_of(folder: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda item: item.family)
def test_the_place_exists_and_is_a_sampler(obstacle: Obstacle) -> None:
    calls = [node for node in ast.walk(source_of(obstacle)) if isinstance(node, ast.Call)]
    drawn = {getattr(node.func, "attr", "") for node in calls}
    # A sampler draws noise itself, or has a function of its own do so.
    assert drawn & {"randn", "rand", "_make_action_latents"}


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda item: item.family)
def test_names_in_the_text_exist_in_the_family(obstacle: Obstacle) -> None:
    text = f"{obstacle.reason} {obstacle.next_step}"
    # Whatever looks like code: with an underscore, a capital inside a word, or a dot between two names.
    code = set(re.findall(r"\b(?:\w+_\w+|_\w+|[A-Z][a-z]+[A-Z]\w+)\b", text))
    code -= {"x_next", "t_next", "InternVL3"}
    words = words_of(POLICIES / obstacle.family)
    assert code
    assert [name for name in sorted(code) if not re.search(rf"\b{name}\b", words)] == []


def test_every_flow_matching_family_is_supported_or_listed() -> None:
    listed = [obstacle.family for obstacle in OBSTACLES]
    supported = set(own_families())
    assert listed == sorted(set(listed)) == sorted(WITHOUT_ADAPTER)
    assert not supported & set(listed)
    # A family that a newer LeRobot brings must be read and put in one of the three places.
    assert set(families()) == supported | set(listed) | set(NO_FLOW)


@pytest.mark.parametrize("family", NO_FLOW)
def test_those_left_out_follow_no_flow(family: str) -> None:
    assert not re.search(r"flow[ _-]?match", words_of(families()[family]), re.IGNORECASE)


@pytest.mark.parametrize("family", WITHOUT_ADAPTER)
def test_a_family_without_adapter_is_refused_with_its_reason(family: str) -> None:
    with pytest.raises(UserError, match=WITHOUT_ADAPTER[family]):
        adapter_for(family)
