"""The benchmark of latency: its reduced sizes run, its full sizes are what they say, its document shows its results."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import small_gemma
from script_files import scripts_of

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "latency"
RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.fixture(scope="module")
def run() -> Iterator[ModuleType]:
    with scripts_of(FOLDER) as load:
        yield load("run")


@pytest.fixture(scope="module")
def runtimes(run: ModuleType) -> Iterator[ModuleType]:
    with scripts_of(FOLDER) as load:
        yield load("runtimes")


@pytest.fixture(scope="module")
def policies(run: ModuleType) -> ModuleType:
    return sys.modules["random_policies"]


def check(result: dict) -> None:
    """What every result says, wherever it was measured."""
    seconds = result["seconds"]
    assert seconds["batch_size"] == 1
    assert {chunk["num_steps"] for chunk in seconds["chunks"]} == {1, 10}
    encode, step = seconds["encode_s"], seconds["step_s"]
    assert step > 0
    assert result["ceiling"] == pytest.approx((encode + 10 * step) / (encode + step))
    assert result["encode_over_step"] == pytest.approx(encode / step)
    assert 1 <= result["ceiling"] < 10
    # Whole chunks pay for what lies between the parts too; timed apart, the two differ somewhat.
    assert result["measured_speedup"] == pytest.approx(result["ceiling"], rel=0.5)
    assert result["compiled"] == (result["compile_s"] is not None)
    assert result["parameters_acting"] < result["parameters"]
    assert result["environment"]["device_name"]


def test_a_reduced_size_is_measured(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "result.json"
    options = ["--family=pi05", "--size=reduced", "--repeats=3", "--warm_up=1", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    run.main()
    result = json.loads(output.read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :]) == result
    assert (result["family"], result["size"], result["dtype"]) == ("pi05", "reduced", "float32")
    check(result)


@pytest.mark.parametrize(
    ("family", "millions", "acting"),
    [("smolvla", (450, 451), (400, 405)), ("pi05", (4143, 4144), (3300, 3400))],
)
def test_the_full_configs_describe_the_full_policies(
    policies: ModuleType, family: str, millions: tuple[int, int], acting: tuple[int, int]
) -> None:
    # The tests of these families have made the classes small, if they were imported before.
    with small_gemma.full_size():
        outline = policies.outline(family, "full", "float32")
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    total = sum(parameter.numel() for parameter in outline.parameters())
    assert millions[0] <= total / 1e6 < millions[1]
    assert acting[0] <= policies.acting(outline) / 1e6 < acting[1]


@pytest.mark.parametrize("family", ["smolvla", "pi05"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_have_the_dtypes_of_the_stock_policy(
    policies: ModuleType, family: str, dtype: str
) -> None:
    built = policies.build(family, "reduced", "cpu", dtype)
    stock = policies.outline(family, "reduced", dtype)
    found = {name: parameter.dtype for name, parameter in built.module.named_parameters()}
    assert found == {name: parameter.dtype for name, parameter in stock.named_parameters()}
    assert (torch.bfloat16 in found.values()) == (dtype == "bfloat16")
    assert torch.float32 in found.values()
    assert torch.get_default_dtype() == torch.float32
    # Buffers too, such as rotary frequencies.
    assert {name: buffer.dtype for name, buffer in built.module.named_buffers()} == {
        name: buffer.dtype for name, buffer in stock.named_buffers()
    }
    assert built.encode(built.preprocess(policies.observation(built))).batch_size == 1


@pytest.mark.docs
def test_the_document_shows_the_committed_results(run: ModuleType) -> None:
    assert RESULTS
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- table -->\n(.*?)\n<!-- /table -->", text, re.DOTALL)
    assert shown[1] == run.table(FOLDER / "results")
    for line in shown[1].splitlines()[2:]:
        times = [cell.strip() for cell in line.strip("|").split("|")[-2:]]
        assert all(times) if "CPU" not in line else not any(times)


@pytest.mark.docs
def test_the_document_shows_the_committed_runtimes(runtimes: ModuleType) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- runtimes -->\n(.*?)\n<!-- /runtimes -->", text, re.DOTALL)
    assert shown[1] == runtimes.table(FOLDER / "runtimes")


@pytest.mark.slow
def test_runtimes_take_turns_on_one_policy(
    runtimes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "result.json"
    options = ["--policy=smolvla", "--size=reduced", "--rounds=2", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["runtimes.py", *options])
    runtimes.main()
    result = json.loads(output.read_text(encoding="utf-8"))
    found = {(row["way"], row["num_steps"]): row["p50_s"] for row in result["rows"]}
    whole = {way for way in runtimes.WAYS if way.endswith("one graph")}
    parts = {(way, n) for way in {*runtimes.WAYS} - whole for n in (*runtimes.STEPS, *runtimes.PARTS)}
    assert set(found) == parts | {(way, 1) for way in whole}
    for way in {*runtimes.WAYS} - whole:
        assert found[way, 10] > found[way, 2] > found[way, 1] > found[way, "step"] > 0
    assert found["PyTorch", 1] > found["OpenVINO", 1]
    assert result["exports"]["ONNX Runtime"]["max_relative"] < 1e-4
