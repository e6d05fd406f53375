"""Settings for the whole test run: no network, few threads, nothing random between runs."""

import gc
import os
import signal

# Before torch, tokenizers and huggingface_hub are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# What is imported from here on stays: looking for garbage in it took a fifteenth of the time of importing.
gc.disable()

# The tests' tensors are small: a second thread costs more than it gives.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# The same examples on every run, and no deadline: the first call of a torch operator is slow on a busy machine.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("wide", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# A shell starts what it runs in the background with interrupts ignored; tests that interrupt a run mean it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In some virtual machines all processes have real-time priority: two trainings that never wait then keep two cores to
# themselves for good, and whoever waits for them never runs. Children inherit what is set here.
if hasattr(os, "sched_setscheduler"):
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

pytest_plugins = ["small_policies", "small_jobs"]

LONGEST = [
    "test_process", "test_families", "test_study", "test_reflow_job", "test_evaluate", "test_distributed",
    "test_rounds", "test_family_variants", "test_train_from_store", "test_env_metaworld_light", "test_dataset_episodes",
    "test_methods_job", "test_bad_runs", "test_stock_parity", "test_demo", "test_lora", "test_collect",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that two processes end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
