"""Verbs and options of earlier releases, and what there is instead: one sentence each."""

VERBS = {
    "bench": "time training in a checkout with python benchmarks/training/time_training.py.",
}
"""By the name of the verb."""

OPTIONS: dict[tuple[str, str], str] = {
    ("reflow", "optimizer.momentum"): "the optimiser muon has left; choose --optimizer.type=soap or adamw.",
}
"""By verb and option."""
