"""Validation scores of a sweep that is under way, on disk, so that an interrupted run loses only the members that were training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from featcache.probing.protocols.protocol import Member
from featcache.probing.scoring.soundness import DIVERGED
from featcache.store.errors import CacheError
from featcache.store.files import read_sealed, write_sealed

FOLDER = "unfinished"


class Unfinished:
    """The validation scores of one run's members; kept until the run has a result.

    Args:
        out: folder of the results.
        run: the run's id, which covers everything that its members depend on.
    """

    def __init__(self, out: Path, run: str) -> None:
        self._path = out / FOLDER / f"{run}.json"

    def read(self) -> list[dict[Member, float]]:
        """Return the scores of finished members, round by round; none if there is no file, or the file is damaged."""
        try:
            document = read_sealed(self._path)
            return [
                {Member(**entry["member"]): _score(entry["score"]) for entry in entries}
                for entries in document["rounds"]
            ]
        except (OSError, CacheError, KeyError, TypeError, ValueError):
            return []

    def write(self, rounds: Sequence[Mapping[Member, float]]) -> None:
        """Write the scores of all members so far."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        entries = [
            [
                # JSON has no infinity, so a member that diverged has no score.
                {"member": asdict(member), "score": None if score == DIVERGED else score}
                for member, score in scores.items()
            ]
            for scores in rounds
        ]
        write_sealed(self._path, {"rounds": entries})

    def remove(self) -> None:
        """Remove the file, since the run has a result."""
        self._path.unlink(missing_ok=True)
        try:
            self._path.parent.rmdir()
        except OSError:  # other runs keep their files there
            return


def _score(value: float | None) -> float:
    return DIVERGED if value is None else float(value)
