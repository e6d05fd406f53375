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
