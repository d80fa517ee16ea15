"""What all heads have in common: M of them train side by side, along a leading member axis.

Shapes: M members, B batch, T tokens, D width, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.probing.inputs.transforms import PLAIN, InputTransform, OutputScale


class Head(nn.Module):
    """M small classifiers of one form, over the same tokens; a trained head alone has M = 1.

    Every parameter and every buffer has the member axis first, and no operation mixes members, so each of them is
    what it would be alone. A subclass takes exactly these arguments first, builds itself from the parts in
    `featcache.probing.heads.parts`, and says how prepared tokens become logits.

    Args:
        num_tokens: T.
        width: D.
        num_classes: C.
        dropouts: one probability for each of the M members.
    """

    input_transform: InputTransform = PLAIN
    """What stored tokens go through before the head: `forward` takes what comes out of it."""
    output: OutputScale | None = None
    """Of a regression: maps what `forward` gives to the units of the targets."""
    losses: Tensor | None = None
    """Of a member that was just trained: the loss of every update, ``[S]``; not saved with it."""

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

    @property
    def options(self) -> dict[str, Any]:
        """What the head takes besides its size, as plain JSON values; with them it can be built again."""
        return {}

    @property
    def activations(self) -> int:
        """About how many values a step keeps for each sample and member, besides logits; small where not given."""
        return 0

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map tokens to logits.

        Args:
            x: ``[B, T, D]``, through the input transform and perhaps jittered.
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
        """Map what `prepare` returned to logits ``[M, B, C]``.

        In training mode, a head of several classifiers that are trained independently may give K sets of logits for every
        member, ``[M * K, B, C]``: each has its own loss.
        """
        raise NotImplementedError

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[M, B, H, T]`` of tokens `x`; only heads whose entry says so have it."""
        raise NotImplementedError

    def like(self, dropouts: Sequence[float]) -> "Head":
        """Build a head of the same form and size for other members."""
        return type(self)(self.num_tokens, self.width, self.num_classes, dropouts, **self.options)

    def member(self, index: int) -> "Head":
        """Return one member, M = 1, on the same memory."""
        with torch.device("meta"):  # nothing is drawn, nothing is allocated
            alone = self.like(self.dropouts[index : index + 1])
        alone.load_state_dict(
            {name: tensor[index : index + 1] for name, tensor in self.state_dict().items()}, assign=True
        )
        alone.input_transform, alone.output = self.input_transform, self.output
        return alone.train(self.training)

    def member_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the only member, without the member axis, and those of its input transform and output scale."""
        own = {name: tensor.squeeze(0) for name, tensor in self.state_dict().items()}
        return own | self.input_transform.state() | ({} if self.output is None else self.output.state())

    def load_member(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `member_state` gave, as the only member.

        Raises:
            RuntimeError: names or shapes do not fit.
        """
        self.input_transform, rest = InputTransform.from_state(state)
        self.output, rest = OutputScale.from_state(rest)
        self.load_state_dict({name: tensor.unsqueeze(0) for name, tensor in rest.items()}, assign=True)
