"""The linear probe: the baseline of every comparison."""

from torch import Tensor, nn

from featcache.probe.heads.base import Head


class LinearHead(Head):
    """Concatenates the T tokens and maps them to C classes, as in arXiv 2601.09322."""

    def __init__(self, num_tokens: int, width: int, num_classes: int) -> None:
        """Build the head for inputs ``[B, num_tokens, width]``, with PyTorch's default initialisation."""
        super().__init__()
        self.classifier = nn.Linear(num_tokens * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `x` ``[B, T, D]`` to logits ``[B, C]``."""
        # [B, T, D] -> [B, T * D]
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
