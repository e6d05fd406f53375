"""How long a policy takes for a chunk, and what memory."""

from dataclasses import dataclass, field
from typing import Literal

from chordflow.results.statistics import Percentiles

ABOVE, APART = 0.1, 0.2
"""Timings are unreliable where a speed-up is above the ceiling by more than the first share, or whole chunks and their
parts are apart by more than the second."""


@dataclass(frozen=True)
class ChunkTime:
    """Measured time of a whole chunk, from the preprocessed observation to the endpoint.

    Attributes:
        num_steps: Euler steps.
        seconds: percentiles of the time.
    """

    num_steps: int
    seconds: Percentiles


@dataclass(frozen=True)
class Memory:
    """Memory that the policy takes while it acts.

    Attributes:
        weights_bytes: parameters and buffers.
        peak_bytes: most memory in use while chunks were made.
        kind: what `peak_bytes` counts: allocations on the accelerator, or the whole process.
    """

    weights_bytes: int
    peak_bytes: int
    kind: Literal["accelerator", "process"]


@dataclass(frozen=True)
class Latency:
    """Time for one chunk, split into what every step count pays once and what each step pays.

    Attributes:
        encode_s: median seconds to encode the observation.
        step_s: median seconds for one velocity evaluation.
        batch_size: observations at a time.
        repeats: timed repetitions behind each median.
        teacher_num_steps: steps of the teacher as deployed.
        student_num_steps: steps of the student.
        speedup: *Derived.* Time of the teacher's chunk divided by that of the student's: of whole chunks as measured
            where `chunks` has both, else summed up from `encode_s` and `step_s`.
        ceiling: *Derived.* `(encode_s + n * step_s) / (encode_s + step_s)` for the n steps of the teacher: the most
            that step distillation can give here.
        reliable: *Derived.* False where the speed-up exceeds the ceiling by more than a tenth, or a whole chunk and the
            sum of its parts disagree by more than a fifth: the machine was busy, and no figure of time is printed.
        encode: percentiles behind `encode_s`; None where only the median was kept.
        step: percentiles behind `step_s`.
        chunks: whole chunks at several step counts, measured rather than summed up.
        processors_s: median seconds of the checkpoint's processors for one observation and its actions; they are
            not part of `encode_s`. None where they were not timed.
        memory: None where it was not measured.
    """

    encode_s: float
    step_s: float
    batch_size: int
    repeats: int
    teacher_num_steps: int
    student_num_steps: int
    encode: Percentiles | None = None
    step: Percentiles | None = None
    chunks: list[ChunkTime] = field(default_factory=list)
    processors_s: float | None = None
    memory: Memory | None = None
    speedup: float = field(init=False)
    ceiling: float = field(init=False)
    reliable: bool = field(init=False)

    def __post_init__(self) -> None:
        if not (self.encode_s >= 0 and self.step_s > 0):
            raise ValueError(f"encode_s is {self.encode_s} and step_s is {self.step_s}; times are positive.")
        teacher = self.teacher_num_steps
        object.__setattr__(self, "speedup", 1 / self.relative(self.student_num_steps))
        object.__setattr__(self, "ceiling", self.chunk_s(teacher) / self.chunk_s(1))
        whole = [(chunk.seconds.p50, self.chunk_s(chunk.num_steps)) for chunk in self.chunks]
        apart = any(abs(timed - summed) > APART * summed for timed, summed in whole)
        object.__setattr__(self, "reliable", self.speedup <= (1 + ABOVE) * self.ceiling and not apart)

    def chunk_s(self, num_steps: int) -> float:
        """Seconds for one chunk at this many Euler steps, summed up from encoding and steps."""
        return self.encode_s + num_steps * self.step_s

    def relative(self, num_steps: int) -> float:
        """Time of a chunk over that of the teacher's: of whole chunks where both were timed, else of sums."""
        whole = {chunk.num_steps: chunk.seconds.p50 for chunk in self.chunks}
        teacher = self.teacher_num_steps
        if whole.get(teacher) and whole.get(num_steps):
            return whole[num_steps] / whole[teacher]
        return self.chunk_s(num_steps) / self.chunk_s(teacher)

    def encode_share(self, num_steps: int) -> float:
        """Share of encoding in a chunk at this many steps, from the same figures as the ceiling."""
        return self.encode_s / self.chunk_s(num_steps)
