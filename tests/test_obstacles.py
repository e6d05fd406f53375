"""What docs/families.md says of families without adapter covers the installed LeRobot; read, never imported."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from chordflow.errors import UserError
from chordflow.policies.registry import WITHOUT_ADAPTER, adapter_for, own_families
from script_files import ROOT

# A variational autoencoder, DDPM, reinforcement learning, tokens, a learned model, quantised actions.
NO_FLOW = ("act", "diffusion", "gaussian_actor", "pi0_fast", "tdmpc", "vqbet")


def families() -> set[str]:
    """Every policy type that LeRobot registers."""
    spec, found = find_spec("lerobot"), set()
    assert spec.submodule_search_locations
    for file in Path(spec.submodule_search_locations[0], "policies").glob("*/configuration_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_subclass":
                (name,) = node.args
                assert isinstance(name, ast.Constant)
                found.add(str(name.value))
    return found


def test_every_flow_matching_family_is_supported_or_listed() -> None:
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8").split("## Not supported yet")[1]
    listed = re.findall(r"^\| `(\w+)`", text.split("\n## ")[0], re.MULTILINE)
    assert listed == sorted(set(listed)) == sorted(WITHOUT_ADAPTER)
    # A family that a newer LeRobot brings must be read and put in one of the three places.
    assert families() == {*own_families(), *listed, *NO_FLOW}
    assert len(families()) == len(own_families()) + len(listed) + len(NO_FLOW)


@pytest.mark.parametrize("family", WITHOUT_ADAPTER)
def test_a_family_without_adapter_is_refused_with_its_reason(family: str) -> None:
    with pytest.raises(UserError, match=WITHOUT_ADAPTER[family]):
        adapter_for(family)
