"""Fixtures that build small checkpoints and datasets once per run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from builders import build_checkpoint, build_dataset, build_vlm
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.smolvla import SmolVLAFlowPolicy

type Folders = Callable[[str], Path]


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLM folder."""
    return build_vlm(tmp_path_factory.mktemp("vlm") / "tiny-smolvlm")


@pytest.fixture(scope="session")
def checkpoint(vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock SmolVLA checkpoint; not to be written to."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pretrained_model", vlm)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A checkpoint of each family, built once; not to be written to."""
    from families import CASES

    @cache
    def folder(family: str) -> Path:
        return CASES[family].build(tmp_path_factory.mktemp(family) / "pretrained_model")

    return folder


@pytest.fixture(scope="session")
def family_policy(family_folder: Folders) -> Callable[[str], FlowPolicy]:
    """The same, loaded once; not to be changed."""
    return cache(lambda family: load_flow_policy(family_folder(family), device="cpu"))


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobotDataset v3 that fits the checkpoint; not to be written to."""
    return build_dataset(tmp_path_factory.mktemp("dataset") / "tiny")


@pytest.fixture(scope="session")
def policy(checkpoint: Path) -> FlowPolicy:
    """The checkpoint, loaded once; not to be changed."""
    return load_flow_policy(checkpoint, device="cpu")


@pytest.fixture
def tiny_policy(checkpoint: Path) -> SmolVLAFlowPolicy:
    """The checkpoint, loaded afresh."""
    policy = load_flow_policy(checkpoint, device="cpu")
    assert isinstance(policy, SmolVLAFlowPolicy)
    return policy
