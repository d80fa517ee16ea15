"""The repetitions of a job: seeds, and for few-shot runs the numbers of shots and the draws of samples. No torch."""

from dataclasses import dataclass

from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import EXACT, ProbeRequest


@dataclass(frozen=True)
class Repetition:
    """One repetition of a job."""

    seed: int
    shots: int | None = None
    draw: int = 0

    def __str__(self) -> str:
        """Description for titles."""
        plural = "" if self.shots == 1 else "s"
        few = "" if self.shots is None else f"{self.shots} shot{plural}, draw {self.draw}, "
        return f"{few}seed {self.seed}"


def requested_repetitions(request: ProbeRequest) -> list[Repetition]:
    """Return the requested repetitions."""
    if not request.shots:
        return [Repetition(seed) for seed in request.seeds]
    return [
        Repetition(seed, shots, draw)
        for shots in request.shots
        for draw in range(request.draws)
        for seed in request.seeds
    ]


def title_of(job: HeadJob, repetition: Repetition) -> str:
    """Return a readable name of a run: head, tokens, method of fitting, and the repetition."""
    how = f"exact, {job.penalty}, " if job.solver == EXACT else ""
    transform = f"{job.input}, " if job.input else ""
    return f"{job.head.name} on {job.selection}, {transform}{how}{repetition}"
