"""What `chordflow bench training` measures: gap and samples by wall-clock time, operations, memory.

One file, written whole after each run of a loop, so that a benchmark can be stopped and gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from chordflow.results.files import RecordFile

NAIVE = "naive"
"""The loop without reuse, as runs and tables name it."""


@dataclass(frozen=True)
class BenchGap:
    """One-step gap to the teacher on held-out observations, each a share of the spread of the teacher's endpoints.

    Attributes:
        rms: to its converged ODE.
        median: likewise.
        flip_rate: share of pairs that lie at different modes.
        deployed_rms: to the teacher as deployed.
    """

    rms: float
    median: float
    flip_rate: float
    deployed_rms: float


@dataclass(frozen=True)
class Look:
    """A student at a mark of the clock.

    Attributes:
        mark_s: the mark, in seconds.
        seconds: when the step that passed it had ended.
        steps: optimiser steps done.
        samples: couplings trained on, repeats counted.
        gap: at one step.
    """

    mark_s: float
    seconds: float
    steps: int
    samples: int
    gap: BenchGap


@dataclass(frozen=True)
class BenchRun:
    """One loop trained once.

    Attributes:
        loop: its name.
        seed: of everything random.
        budget_s: seconds in which the learning rate fell to zero.
        ready_s: seconds until the first step could begin; None where none did.
        cpu_s: processor seconds that the process used meanwhile, looks left out. Far fewer than `seconds` times
            threads tells of a machine that did something else.
        loss: of the last step; None where there was none.
        buffer_bytes: memory of the couplings and encoded observations that were kept.
        peak_bytes: the most memory in use, on an accelerator what was allocated, on a CPU the whole process; None
            where it cannot be told.
        looks: in the order of their marks.
    """

    loop: str
    seed: int
    budget_s: float
    ready_s: float | None
    cpu_s: float
    loss: float | None
    buffer_bytes: int
    peak_bytes: int | None
    looks: list[Look]


@dataclass(frozen=True)
class BenchLoop:
    """A way to make the couplings of a step.

    Attributes:
        name: of the loop.
        batch_size: couplings in a micro-batch.
        gradient_accumulation_steps: micro-batches in a step.
        noises_per_observation: M.
        uses_per_coupling: R; null for as often as the run lasts.
        num_observations: in the buffer; None for the loop that has none.
        block_size: observations replaced together; likewise.
        adaptive_share: of the noises that goes where endpoints spread.
        start_observations: in the buffer when training begins; None where not known.
        budgets: seconds at which it is run; None for all of the benchmark's.
    """

    name: str
    batch_size: int
    gradient_accumulation_steps: int = 1
    noises_per_observation: int = 1
    uses_per_coupling: int | None = 1
    num_observations: int | None = None
    block_size: int | None = None
    adaptive_share: float = 0.0
    start_observations: int | None = None
    budgets: list[float] | None = None


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        batch_size: observations or couplings that it is done on.
        flop: operations of its matrix products and convolutions, one multiplication and one addition counting two.
        seconds: median of several times.
    """

    batch_size: int
    flop: int
    seconds: float

    @property
    def flop_each(self) -> float:
        """Operations for one observation or coupling."""
        return self.flop / self.batch_size

    @property
    def flop_per_s(self) -> float:
        """Operations a second."""
        return self.flop / self.seconds


@dataclass(frozen=True)
class Roofline:
    """How much there is to compute, and how near to the device's peak it is computed.

    Attributes:
        dtype: of the products, as torch names it.
        peak_flop_per_s: of a large square matrix product on this device, the best of several.
        solver_nfe: evaluations of the teacher's velocity for a coupling of a buffer.
        naive_nfe: for one of the loop without reuse.
        encode: observations encoded.
        velocity: one evaluation of the velocity without gradients.
        train: a student's step on encoded observations: forward, backward, optimiser. Not the first one, and of SOAP
            none that refreshes its bases.
        context_bytes: memory of one encoded observation.
        coupling_bytes: of one noise with its endpoint.
    """

    dtype: str
    peak_flop_per_s: float
    solver_nfe: int
    naive_nfe: int
    encode: Work
    velocity: Work
    train: Work
    context_bytes: int
    coupling_bytes: int

    def flop_per_sample(self, loop: BenchLoop) -> float:
        """Operations that a loop needs for one training sample, by counting.

        Without a buffer the observation is encoded twice. A buffer that is never replaced is made once and costs ever
        less.
        """
        train = self.train.flop_each
        encode, velocity = self.encode.flop_each, self.velocity.flop_each
        if loop.num_observations is None:
            return 2 * encode + self.naive_nfe * velocity + train
        if loop.uses_per_coupling is None:
            return train
        made = encode / loop.noises_per_observation + self.solver_nfe * velocity
        return made / loop.uses_per_coupling + train


@dataclass(frozen=True)
class Speed:
    """Training samples of a loop over a few steps.

    Attributes:
        loop: its name.
        samples: couplings trained on, repeats counted.
        steps: optimiser steps.
        seconds: the making of couplings included.
        buffer_bytes: memory of what was kept.
        peak_bytes: the most memory in use, as in `BenchRun`.
    """

    loop: str
    samples: int
    steps: int
    seconds: float
    buffer_bytes: int
    peak_bytes: int | None

    @property
    def samples_per_s(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class TrainingBench(RecordFile):
    """What `bench.json` holds.

    Attributes:
        command: the command line that made it, or that went on with it last.
        settings: all of them.
        versions: of Python, torch, LeRobot and chordflow.
        device: its name.
        teacher: the checkpoint, or what stands for one.
        teacher_num_steps: of the teacher as deployed.
        teacher_sha256: of its weights file; empty where there is none.
        loops: in the order in which they are shown, the naive one first.
        budgets: seconds at which students are compared.
        seeds: of the runs.
        clock: `wall`, or `own` for the processor seconds of the one thread.
        floor: gap of the teacher as deployed to its own converged ODE; None where no gap was measured.
        untrained: gap of the teacher at one step; likewise.
        pairs: observations times noises behind a gap.
        roofline: counted once.
        runs: one for each loop, seed and budget that is done.
        speeds: where only speed was measured.
    """

    VERB: ClassVar[str] = "chordflow bench training"
    GIVE: ClassVar[str] = "a benchmark's file"

    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: str
    teacher_num_steps: int
    loops: list[BenchLoop]
    budgets: list[float]
    seeds: list[int]
    clock: str
    teacher_sha256: str = ""
    floor: BenchGap | None = None
    untrained: BenchGap | None = None
    pairs: int = 0
    roofline: Roofline | None = None
    runs: list[BenchRun] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    kind: Literal["bench training"] = "bench training"

    def look(self, loop: str, seed: int, mark_s: float) -> Look | None:
        """The student of a loop at a mark, annealed to it where there is such a run, or None."""
        runs = [run for run in self.runs if (run.loop, run.seed) == (loop, seed)]
        # The run that ended at the mark comes before longer ones that passed it.
        for run in sorted(runs, key=lambda run: run.budget_s):
            for look in run.looks:
                if look.mark_s == mark_s:
                    return look
        return None
