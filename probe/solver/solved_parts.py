"""Solved parts of a path of penalties, kept in a journal.

Shapes: P penalties, C classes, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.solver.certificate import Certificate
from featcache.probing.solver.journal import PathJournal
from featcache.probing.solver.spaces import Coefficients, Path


@dataclass(frozen=True)
class SolvedParts:
    """The solutions of one problem: each part is the penalties that were solved side by side."""

    journal: PathJournal
    problem: Mapping[str, object]
    """Identity of the problem within the run: sizes, split and space."""

    def of(self, stage: str) -> "SolvedParts":
        """Return the place for another problem of the same run."""
        return SolvedParts(self.journal, {**self.problem, "stage": stage})

    def read(self, penalties: Sequence[float]) -> Path | None:
        """Return the solutions for some penalties; None if these were not solved."""
        tensors = self.journal.read(self._key(penalties))
        if tensors is None:
            return None
        certificates = [
            Certificate(penalty, objective, norm, gap, int(iterations), bool(converged))
            for penalty, (objective, norm, gap, iterations, converged) in zip(
                penalties, tensors["certificates"].tolist(), strict=True
            )
        ]
        return Path(Coefficients(tensors["body"], tensors["bias"]), certificates)

    def write(self, penalties: Sequence[float], path: Path) -> None:
        """Keep the solutions for some penalties, and drop the state of their minimisation."""
        figures = [
            (each.objective, each.gradient_norm, each.suboptimality, each.iterations, each.converged)
            for each in path.certificates
        ]
        tensors = {
            "body": path.coefficients.body,
            "bias": path.coefficients.bias,
            "certificates": torch.tensor(figures, dtype=torch.float64),
        }
        self.journal.write(self._key(penalties), tensors)
        self.journal.drop(self._key(penalties, "minimisation"))

    def read_state(self, penalties: Sequence[float]) -> dict[str, Tensor] | None:
        """Return the state of a minimisation that was under way."""
        return self.journal.read(self._key(penalties, "minimisation"))

    def write_state(self, penalties: Sequence[float], state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the state of a minimisation, if the last save is long enough ago."""
        if self.journal.is_due:
            self.journal.write(self._key(penalties, "minimisation"), state())

    def _key(self, penalties: Sequence[float], content: str = "solution") -> dict[str, object]:
        return {**self.problem, "penalties": list(penalties), "content": content}
