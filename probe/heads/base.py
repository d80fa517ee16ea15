"""What all heads have in common: M of them train side by side, along a leading member axis.

Shapes: M members, B batch, T tokens, D width, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """M small classifiers of one form, over the same L2-normalised tokens; a trained head alone has M = 1.

    Every parameter and every buffer has the member axis first, and no operation mixes members, so each of them is
    what it would be alone. A subclass takes exactly these arguments first, builds itself from the parts in
    `featcache.probe.heads.parts`, and says how prepared tokens become logits.

    Args:
        num_tokens: T.
        width: D.
        num_classes: C.
        dropouts: one probability for each of the M members.
    """

    def __init__(self, num_tokens: int, width: int, num_classes: int, dropouts: Sequence[float]) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.width = width
        self.num_classes = num_classes
        self.dropouts = tuple(dropouts)

    @property
    def num_members(self) -> int:
        """M."""
        return len(self.dropouts)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map tokens to logits.

        Args:
            x: ``[B, T, D]``, L2-normalised and perhaps jittered.
            generator: where dropout masks are drawn from in training; None is torch's global one.

        Returns:
            ``[M, B, C]``.
        """
        return self.classify(self.prepare(x, self.training and any(self.dropouts), generator))

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Any:
        """Compute what of a mini-batch is the same for all members, however many heads they are spread over.

        Args:
            x: ``[B, T, D]``.
            dropout: whether any member drops anything.
            generator: as for `forward`.
        """
        return x

    def classify(self, inputs: Any) -> Tensor:
        """Map what `prepare` returned to logits ``[M, B, C]``."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[M, B, H, T]`` of tokens `x`; only heads whose entry says so have it."""
        raise NotImplementedError

    def like(self, dropouts: Sequence[float]) -> "Head":
        """Build a head of the same form and size for other members."""
        return type(self)(self.num_tokens, self.width, self.num_classes, dropouts)

    def member(self, index: int) -> "Head":
        """Return one member, M = 1, on the same memory."""
        with torch.device("meta"):  # nothing is drawn, nothing is allocated
            alone = self.like(self.dropouts[index : index + 1])
        alone.load_member({name: tensor[index] for name, tensor in self.state_dict().items()})
        return alone.train(self.training)

    def member_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the only member, without the member axis."""
        return {name: tensor.squeeze(0) for name, tensor in self.state_dict().items()}

    def load_member(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `member_state` gave, as the only member.

        Raises:
            RuntimeError: names or shapes do not fit.
        """
        self.load_state_dict({name: tensor.unsqueeze(0) for name, tensor in state.items()}, assign=True)
