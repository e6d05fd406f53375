"""Verbs and options of earlier releases, and what there is instead: one sentence each."""

VERBS = {
    "bench": "time training in a checkout with python benchmarks/training/time_training.py, and find out how often a "
    "coupling may be used with chordflow study reuse.",
}
"""By the name of the verb; verbs that have another name now run under the old one and say so."""

OPTIONS = {
    "optimizer.momentum": "the optimiser muon has left; choose --optimizer.type=soap or adamw.",
    "checkpoints": "it is called --looks now.",
    "keep_checkpoints": "it is called --keep_looks now.",
}
"""By the name of the option."""

RENAMED = {
    ("compare",): ("study", "methods"),
    ("study", "init"): ("study", "beginnings"),
}
"""Commands that have another name now; the old one goes in the next release."""

_LOOKS = {"--checkpoints": "--looks", "--keep_checkpoints": "--keep_looks"}


def renamed(arguments: list[str]) -> tuple[list[str], str | None]:
    """A command line by today's names, and a sentence that gives them; None where they are today's already."""
    for old, new in RENAMED.items():
        if tuple(arguments[: len(old)]) == old:
            words = [word.partition("=") for word in arguments[len(old) :]]
            options = [_LOOKS.get(name, name) + equals + value for name, equals, value in words]
            now = f"chordflow {' '.join(new)}"
            return [
                *new,
                *options,
            ], f"chordflow {' '.join(old)} is now {now}; the old name goes in the next release."
    return arguments, None
