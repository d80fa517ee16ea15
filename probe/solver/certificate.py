"""How exact a solution is, and when it is exact enough."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4
MAX_ITERATIONS = 1000

OnSolved = Callable[[int], None]
"""Called with the number of penalties that were just solved."""


@dataclass(frozen=True)
class Certificate:
    """How exact a solution is. All figures are of float64 arithmetic."""

    penalty: float
    objective: float
    gradient_norm: float
    """Frobenius norm of the gradient (with a group lasso: of the smallest subgradient) in weights and bias."""
    suboptimality: float
    """The objective is at most this far above its minimum."""
    iterations: int
    converged: bool
    """Gradient and suboptimality are within the tolerance."""


@dataclass(frozen=True)
class Tolerance:
    """When a minimisation is done: both must hold."""

    gradient: float
    """Frobenius norm of the gradient."""
    gap: float
    """Bound on the suboptimality, as a fraction of the objective."""

    def met(self, gradient: Tensor, gap: Tensor, objective: Tensor) -> Tensor:
        """Whether they do, ``[P]``."""
        return (gradient <= self.gradient) & (gap <= self.gap * objective)
