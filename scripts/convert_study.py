"""Turn a result file of `chordflow compare`, `study init` or `study rounds` into one of `chordflow study`.

compare.json and rounds.json stay, with study.json beside them; another file keeps its name, and what it held is kept as
NAME.old.

usage: python scripts/convert_study.py FILE...
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chordflow.errors import UserError
from chordflow.results.files import decode
from chordflow.results.old_studies import OLD_FILES, kind_of
from chordflow.results.study import STUDY, Study

Data = dict[str, Any]
USUAL_SOLVER = "adams_bashforth"
"""The solver of couplings that the name of an arm of rounds left out."""


def converted(old: Data) -> Study:
    """A file of an old layout in the new one; every figure stays as it is.

    Raises:
        KeyError: if it is of no such layout.
    """
    shared = (
        "command",
        "settings",
        "versions",
        "device",
        "teacher",
        "teacher_sha256",
        "seeds",
        "env",
        "held_out",
    )
    new = {name: old[name] for name in shared} | {
        "untrained": old["untrained"],
        "seconds": old.get("seconds"),
    }
    new |= {"steps": old["steps"], "looks": old.get("at", [old["steps"] or old.get("seconds")])}
    new |= {name: old[name] for name in ("level", "least_gain") if name in old}
    return decode(Study, new | KINDS[old["kind"]](old))


def _methods(old: Data) -> Data:
    arms = []
    for entry in old["methods"]:
        differs = {} if entry["origin"] == "recipe" else {"method.type": entry["method"]}
        differs |= dict(_flat(old["settings"]["recipes"].get(entry["name"], {})))
        same = ("name", "method", "settings", "stock_checkpoint", "step_counts")
        arms.append({name: entry[name] for name in same} | {"way": entry["name"], "differs": differs})
    trials = []
    for run in old["runs"]:
        kept = ("seed", "training_s", "ready_s", "steps", "samples", "loss", "buffer_bytes", "rollouts")
        look = _look(run, old["steps"] or old["seconds"], run["steps"], run["training_s"])
        trials.append(
            {name: run[name] for name in kept} | {"arm": run["method"], "losses": None, "looks": [look]}
        )
    return {"preset": "methods", "arms": arms, "trials": trials}


def _beginnings(old: Data) -> Data:
    several = len({arm["learning_rate"] for arm in old["arms"]}) > 1
    method = old["settings"]["method"]["type"]
    arms, names = [], {}
    for arm in old["arms"]:
        rate, begins = arm["learning_rate"], arm["beginning"]
        names[arm["name"]] = name = f"{begins}_lr_{rate:g}"
        differs = {"student.init": arm["init"], "student.train": arm["train"], "optimizer.lr": rate}
        arms.append(_arm(name, f"{begins}, lr {rate:g}" if several else begins, method, differs))
    trials = []
    for run in old["runs"]:
        looks = [_look(point, point["step"], point["step"], None) for point in run["checkpoints"]]
        kept = {name: run[name] for name in ("seed", "training_s", "samples", "couplings_sha256")}
        trials.append(
            kept | {"arm": names[run["arm"]], "ready_s": None, "buffer_bytes": None, "looks": looks}
            | {"steps": looks[-1]["step"], "loss": run["loss"]["losses"][-1], "losses": run["loss"]}
        )  # fmt: skip
    left_out = [{"name": left["beginning"], "reason": left["reason"]} for left in old["left_out"]]
    return {"preset": "beginnings", "arms": arms, "trials": trials, "left_out": left_out}


def _rounds(old: Data) -> Data:
    rounds, steps = old["rounds"], old["steps"]
    arms: dict[str, Data] = {}
    names: dict[tuple[Any, ...], str] = {}
    for arm in old["arms"]:
        start, solver, share = arm["start"], arm["solver"], arm["real_data_share"]
        differs = {} if solver == USUAL_SOLVER else {"coupling.solver": solver}
        differs |= {"method.real_data_share": share} if share else {}
        prefix = "".join(f"{name.rpartition('.')[2]}_{value}_" for name, value in differs.items())
        teacher, budget = None, steps * rounds if start == "once" else None
        for number in range(1, 2 if start == "once" else rounds + 1):
            began = "teacher" if number == 1 and start in ("last", "first") else start
            place = {"once": "once", "teacher": "round_1"}.get(began, f"{began}_{number}")
            own = differs | {
                "first": {"student.init_path": old["teacher"]},
                "fresh": {"student.init": "teacher_vlm"},
            }.get(began, {})
            arm_of = _arm(prefix + place, arm["name"], "reflow", own) | {"teacher": teacher, "steps": budget}
            arms.setdefault(prefix + place, arm_of)
            names[began, solver, share, number, budget or steps] = teacher = prefix + place
    trials = []
    for run in old["runs"]:
        key = (run["start"], run["solver"], run["real_data_share"], run["round"], run["steps"])
        run["figures"] = run["figures"] and run["figures"] | {"diversity": run["diversity"]}
        kept = {name: run[name] for name in ("seed", "training_s", "steps", "samples", "loss")}
        look = _look(run, run["steps"], run["steps"], run["training_s"])
        kept |= {"arm": names[key], "ready_s": None, "losses": None, "buffer_bytes": None, "looks": [look]}
        trials.append(kept)
    untrained = old["untrained"]
    untrained["figures"] |= {"diversity": old["diversity"]}
    return {"preset": "rounds", "arms": list(arms.values()), "trials": trials, "untrained": untrained}


KINDS = {"compare": _methods, "study init": _beginnings, "study rounds": _rounds}
"""What turns each of the old layouts."""


def _arm(name: str, way: str, method: str, differs: Data) -> Data:
    return {
        "name": name, "way": way, "differs": differs, "settings": {}, "method": method,
        "stock_checkpoint": True, "step_counts": None,
    }  # fmt: skip


def _look(run: Data, mark: float, step: int, seconds: float | None) -> Data:
    kept = {name: run[name] for name in ("student", "weights_sha256", "figures", "success")}
    return kept | {"mark": mark, "step": step, "seconds": seconds}


def _flat(nested: Data, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def convert(file: Path) -> str:
    """Converts a file, and says what became of it; nothing that is there is lost.

    Raises:
        UserError: if it is missing or none of these files, or a file would be written over.
    """
    if not file.is_file():
        raise UserError(f"{file} is no file; give a compare.json, rounds.json or study.json.")
    if (kind := kind_of(file)) not in KINDS:
        if kind == "study":
            return f"{file} is of today's layout and stays as it is"
        raise UserError(f"{file} is no result of chordflow compare, study init or study rounds.")
    old = json.loads(file.read_text(encoding="utf-8"))
    beside = file.name in OLD_FILES
    target = file.with_name(STUDY) if beside else file
    kept = file if beside else file.with_name(f"{file.name}.old")
    if (there := target if beside else kept).exists():
        raise UserError(f"{there} exists; move it, and convert {file} again.")
    try:
        new = converted(old)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it from a good copy.") from error
    if not beside:
        shutil.copy2(file, kept)
    new.save(target)
    return f"converted {file} to {target}; what was there is in {kept}"


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            print(convert(Path(name)))
    except UserError as error:
        print(f"convert_study: {error}", file=sys.stderr)
        sys.exit(2)
