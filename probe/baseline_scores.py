"""Scores of the linear probes on the last class token, and the gains of other heads over them. No torch."""

from dataclasses import dataclass, field, replace

from featcache.probing.repetitions import Repetition
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import SOLVED, TRAINED
from featcache.probing.results.rows import ResultRow


@dataclass
class BaselineScores:
    """Scores of the trained and the solved linear probe, by repetition."""

    scores: dict[tuple[str | None, Repetition], float | None] = field(default_factory=dict)

    def add(self, job: HeadJob, repetition: Repetition, score: float | None) -> None:
        """Remember the score of a job that is a baseline; other jobs are ignored."""
        if job.baseline is not None:
            self.scores[job.baseline, repetition] = score

    def with_gains(self, row: ResultRow, repetition: Repetition, job: HeadJob | None = None) -> ResultRow:
        """Return a row with its gains over the baselines that are known; a gain over any other baseline stays as it was.

        Args:
            row: the row.
            repetition: seed, shots and draw of its run.
            job: the job of the run; a baseline gains nothing over itself.
        """

        def gain(baseline: str, known: float | None) -> float | None:
            is_itself = job is not None and job.baseline == baseline
            reference = row.score if is_itself else self.scores.get((baseline, repetition))
            return known if row.score is None or reference is None else row.score - reference

        return replace(row, gain=gain(TRAINED, row.gain), gain_over_solved=gain(SOLVED, row.gain_over_solved))
