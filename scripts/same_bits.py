"""Prove that a change left every figure and every bit of weights as it was: tiny runs on two checkouts, compared.

usage: python scripts/same_bits.py run CHECKOUT OUT.json [CASE ...]     (some two minutes)
       python scripts/same_bits.py compare BEFORE.json AFTER.json

Both runs have to be made on one machine: bits differ between processors. A checkout that still has the verbs `compare`,
`study init` and `study rounds` is run by them, a later one by `study methods`, `study beginnings` and `study rounds`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = [
    "--batch_size=4", "--buffer.num_observations=8", "--buffer.noises_per_observation=2", "--buffer.block_size=4",
    "--num_workers=0", "--device=cpu", "--dataset.repo_id=test/tiny", "--dataset.eval_split=0.4",
    "--measure.num_observations=4", "--measure.converged_noises=1",
]  # fmt: skip
LITTLE = ["--measure.noises_per_observation=16", "--measure.num_steps=[1]", "--measure.latency_repeats=1"]
ACTING = ["--env.type=drift_of_the_tests", "--eval.n_episodes=4", "--eval.batch_size=2"]
OWN = json.dumps({
    "shown": {"method": {"type": "noise_biased"}, "ema": {"enable": True}, "batch_size": 2},
    "acted": {"observations": "rollout", "collect": {"num_observations": 4, "batch_size": 2}},
})  # fmt: skip


def cases(work: Path, old: bool) -> Iterator[tuple[str, list[list[str]]]]:
    """The commands of every case, by the folder that they write."""
    step = "--optimizer.lr=1e-3"
    plain = ["reflow", "--output_dir=plain", step, *SMALL, *LITTLE, "--seed=5", "--steps=4"]
    yield "plain", [[*plain, "--ema.enable=true"]]
    last = work / "resumed/checkpoints/last/pretrained_model/train_config.json"
    half = [option.replace("=plain", "=resumed") for option in plain]
    yield (
        "resumed",
        [[*half[:-1], "--steps=2"], ["reflow", "--resume=true", f"--config_path={last}", "--steps=4"]],
    )
    rounds = [option.replace("=plain", "=reflow_rounds") for option in plain]
    yield "reflow_rounds", [[*rounds[:-1], "--steps=2", "--rounds=2", "--method.real_data_share=0.5"]]
    verb = ["compare"] if old else ["study", "methods"]
    shared = ["--seeds=[5,6]", *SMALL]
    yield (
        "methods",
        [[*verb, "--output_dir=methods", step, *shared, "--steps=3", f"--recipes={OWN}", *ACTING,
          "--methods=[one_step,shown,acted,snapflow]"]],
    )  # fmt: skip
    verb, looks = ["study", "init" if old else "beginnings"], "checkpoints" if old else "looks"
    yield (
        "beginnings",
        [[*verb, "--output_dir=beginnings", *shared, "--steps=3", f"--{looks}=[0,2,3]", "--log_freq=2",
          "--arms=[teacher,teacher_vlm,random_full]", "--learning_rates=[1e-3]"]],
    )  # fmt: skip
    yield (
        "rounds",
        [["study", "rounds", "--output_dir=rounds", *shared, "--steps=2", "--rounds=2", step, *ACTING,
          "--starts=[last,first,fresh,once]", "--solvers=[adams_bashforth,euler]", "--real_data_shares=[0.5]"]],
    )  # fmt: skip


def inside(work: Path, only: list[str]) -> dict[str, Any]:
    """Runs cases with the code that this process imports; returns what they came to."""
    import importlib.util

    import drift_env  # noqa: F401
    from chordflow.cli.main import main

    old = importlib.util.find_spec("chordflow.experiments.study") is None
    os.chdir(work)
    found: dict[str, Any] = {}
    for name, commands in cases(work, old):
        if only and name not in only:
            continue
        for command in commands:
            if command[0] != "reflow" or "--resume=true" not in command:
                command = [*command, f"--teacher.path={work / 'teacher'}", f"--dataset.root={work / 'data'}"]
            if main(command) != 0:
                raise SystemExit(f"{name} failed: {' '.join(command)}")
        found[name] = _reflow(work / name) if commands[0][0] == "reflow" else _study(work / name, name)
        print(f"{name}: {len(found[name])} students", flush=True)
    return found


def _sha256(student: Path) -> str:
    return hashlib.sha256((student / "model.safetensors").read_bytes()).hexdigest()


def _reflow(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    students = sorted(folder.glob("**/checkpoints/*[0-9]/pretrained_model"))
    found: dict[str, Any] = {str(s.relative_to(folder)): _sha256(s) for s in students if folder / "checkpoints" not in
                             s.parents or not (folder / "checkpoints").is_symlink()}  # fmt: skip
    return {**found, "curvature": [row["curvature"] for row in results["curvature"]], "gaps": _gaps(results["gaps"]),
            "loss": results["loss"]}  # fmt: skip


def _gaps(rows: list[dict[str, Any]]) -> list[list[Any]]:
    names = ("solver", "num_steps", "reference", "rms", "median", "flip_rate", "max_abs")
    return sorted([[str(row[name]) for name in names] for row in rows])


def _figures(figures: dict[str, Any], look: dict[str, Any], diversity: Any = None) -> dict[str, Any]:
    rates = [[row["num_steps"], row["group"], row["rate"]] for row in look.get("success", [])]
    if not (spread := diversity if diversity is not None else figures.get("diversity")):
        spread = []
    return {
        "curvature": figures["curvature"],
        "gaps": _gaps(figures["gaps"]),
        "success": rates,
        "spread": spread,
    }


def _study(folder: Path, name: str) -> dict[str, Any]:
    """Figures and weights by arm, seed and step, of a file of either layout."""
    path = next(
        folder / file for file in ("study.json", "compare.json", "rounds.json") if (folder / file).is_file()
    )
    study = json.loads(path.read_text())
    found = {"teacher": _figures(study["untrained"]["figures"], study["untrained"], study.get("diversity"))}
    for trial in study.get("trials", study.get("runs")):
        arm = trial.get("arm", trial.get("method", "")).replace(", ", "_").replace("lr ", "lr_")
        arm = re.sub(r"once_\d+$", "once", arm)
        if "start" in trial:
            arm = "" if trial["solver"] == "adams_bashforth" else f"{trial['solver']}_"
            arm += f"real_{trial['real_data_share']:g}_" if trial["real_data_share"] else ""
            start = "round" if trial["start"] == "teacher" else trial["start"]
            arm += start if start == "once" else f"{start}_{trial['round']}"
        for look in trial.get("looks", trial.get("checkpoints", [trial])):
            key = f"{arm}, seed {trial['seed']}, step {look.get('step', look.get('steps'))}"
            found[key] = {
                "weights": look["weights_sha256"],
                **_figures(look["figures"], look, trial.get("diversity")),
            }
        if name == "beginnings":
            curve = trial.get("losses", trial["loss"])
            found[f"{arm}, seed {trial['seed']}"] = {"couplings": trial["couplings_sha256"], "loss": curve}
    if name != "rounds":
        # Only studies of rounds measured it before.
        for figures in found.values():
            figures.pop("spread", None)
    return found


def run(checkout: Path, out: Path, only: list[str]) -> None:
    """Runs cases on a checkout in a process of its own."""
    code = [str(checkout / part) for part in ("src", "packages/lerobot_env_detour/src", "tests")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(code),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # The same paths for every checkout: records hold them.
    work = Path(tempfile.gettempdir()) / "same_bits"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    work.mkdir()
    made = "from builders import *; from pathlib import Path; w = Path('.').resolve(); " \
        "build_checkpoint(w / 'teacher', build_vlm(w / 'vlm')); build_dataset(w / 'data')"  # fmt: skip
    subprocess.run([sys.executable, "-c", made], cwd=work, env=environment, check=True)
    subprocess.run(
        [sys.executable, __file__, "inside", str(work), str(out.resolve()), *only],
        env=environment,
        check=True,
    )


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Every place in which two results differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if key not in before or key not in after:
                yield f"{where}/{key} is only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], f"{where}/{key}")
    elif before != after:
        yield f"{where}: {str(before)[:100]} -> {str(after)[:100]}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["inside", work, out, *only]:
            Path(out).write_text(json.dumps(inside(Path(work), only), indent=1))
        case ["run", checkout, out, *only]:
            run(Path(checkout).resolve(), Path(out), only)
        case ["compare", before, after]:
            found = list(differences(*(json.loads(Path(file).read_text()) for file in (before, after))))
            print("\n".join(found) or "the same bits and the same figures")
            sys.exit(bool(found))
        case _:
            sys.exit(__doc__)
