"""Several fitted heads that answer together, as ``--head auto`` may choose.

Source: averaging of predictors; see Caruana et al. 2004, "Ensemble selection from libraries of models"::

    p(c | x) = mean over parts of p_part(c | x)

Each part has an input transform of its own, so the blend takes stored tokens as they are.

Shapes: B batch, T tokens, D width, C classes, O outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.probing.heads import get_head
from featcache.probing.heads.base import Head
from featcache.probing.inputs.transforms import InputTransform
from featcache.probing.scoring.kinds import MULTI_LABEL, SINGLE_LABEL
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel, Task

RAW = InputTransform(l2=False)
_TASKS: Mapping[str, type[SingleLabel | MultiLabel]] = {SINGLE_LABEL: SingleLabel, MULTI_LABEL: MultiLabel}


class BlendHead(Head):
    """The average of fitted heads of one member each, in probabilities (of a regression, in numbers)."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        parts: Sequence[Mapping[str, Any]] = (),
        kind: str = SINGLE_LABEL,
    ) -> None:
        """Build the parts, ``{"head": name, "options": {...}}`` each, to load parameters into; one member."""
        super().__init__(num_tokens, width, num_classes, dropouts)
        self._described = [dict(part) for part in parts]
        self.kind = kind
        size = (num_tokens, width, num_classes)
        self.parts = nn.ModuleList(
            get_head(part["head"]).build(*size, **part["options"]) for part in self._described
        )
        self.input_transform = RAW

    @classmethod
    def of(cls, names: Sequence[str], heads: Sequence[Head], kind: str) -> "BlendHead":
        """Join fitted heads, which must be of one size."""
        described = [{"head": name, "options": head.options} for name, head in zip(names, heads, strict=True)]
        first = heads[0]
        with torch.device("meta"):
            blend = cls(first.num_tokens, first.width, first.num_classes, parts=described, kind=kind)
        blend.parts = nn.ModuleList(heads)
        return blend.eval()

    @property
    def options(self) -> dict[str, Any]:
        """The parts and the kind of targets."""
        return {"parts": self._described, "kind": self.kind}

    @property
    def _task(self) -> Task:
        return _TASKS[self.kind](self.num_classes) if self.kind in _TASKS else Regression(self.num_classes)

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> list[Tensor]:
        """Put stored tokens through the transform of every part."""
        return [head.input_transform.to(x.device).apply_(x.clone()) for head in self._heads()]

    def classify(self, inputs: list[Tensor]) -> Tensor:
        """Average the parts: ``[1, B, O]``."""
        answers = []
        for head, x in zip(self._heads(), inputs, strict=True):
            outputs = head(x)
            answers.append(
                self._task.probabilities(outputs if head.output is None else head.output.apply(outputs))
            )
        return self._task.logits(torch.stack(answers).mean(0))

    def member_state(self) -> dict[str, Tensor]:
        """The states of all parts, and the blend's own transform."""
        state = {
            f"parts.{index}.{name}": tensor
            for index, head in enumerate(self._heads())
            for name, tensor in head.member_state().items()
        }
        return state | self.input_transform.state()

    def load_member(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `member_state` gave."""
        self.input_transform, rest = InputTransform.from_state(state)
        for index, head in enumerate(self._heads()):
            prefix = f"parts.{index}."
            own = {
                name.removeprefix(prefix): rest.pop(name) for name in list(rest) if name.startswith(prefix)
            }
            head.load_member(own)
        if rest:
            raise RuntimeError(f"unexpected parameters {', '.join(rest)}")

    def _heads(self) -> list[Head]:
        return [head for head in self.parts if isinstance(head, Head)]
