"""A recurrent unit that runs over the layers in order.

Source: the GRU (Cho et al. 2014, arXiv 1406.1078), shared by all layers as the recurrent unit of DIANet is (Huang et al. 2019,
arXiv 1905.10671); here it reads the layers' tokens instead of recalibrating channels. As `torch.nn.GRU` defines it::

    r = sigmoid(W_r x_l + V_r h)    u = sigmoid(W_u x_l + V_u h)    n = tanh(W_n x_l + r * V_n h)    h <- (1 - u) n + u h

from h = 0, then ``logits = W BN(h) + b``; x_l are the concatenated tokens of layer l after a layer norm without affine part.

Shapes: M members, B batch, L layers, K token kinds, D width, C classes, R hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, check_count, normalize


class RecurrentHead(LayerwiseHead):
    """A GRU over L layers, BatchNorm of its last state, and an affine map to C classes."""

    name = "recurrent"

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
        hidden: int = 128,
    ) -> None:
        """Build M heads; T = L * K tokens, layer by layer (by default L = T), with `hidden` units each.

        Raises:
            RequestError: the tokens do not divide among the layers, or there is no hidden unit.
        """
        super().__init__(num_tokens, width, num_classes, dropouts, num_layers=num_layers)
        check_count(self.name, "hidden unit", hidden)
        self.hidden = hidden
        self.input_proj = Linear(self.num_members, self.num_kinds * width, 3 * hidden)
        self.hidden_proj = Linear(self.num_members, hidden, 3 * hidden)
        for parameter in (*self.input_proj.parameters(), *self.hidden_proj.parameters()):
            # As torch.nn.GRU; the same draws for all members.
            drawn = nn.init.uniform_(torch.empty_like(parameter[0]), -(hidden**-0.5), hidden**-0.5)
            parameter.data.copy_(drawn.expand_as(parameter))
        self.batch_norm = BatchNorm(self.num_members, hidden)
        self.classifier = Linear(self.num_members, hidden, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The number of layers and the hidden width."""
        return super().options | {"hidden": self.hidden}

    @property
    def activations(self) -> int:
        """Gates and states of all layers."""
        return 12 * self.num_layers * self.hidden

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Normalize the tokens and sort them by layer: ``[B, T, D]`` to ``[L * B, K * D]``."""
        return self.by_layer(as_products(normalize(x))).transpose(0, 1).flatten(0, 1)

    def classify(self, inputs: Tensor) -> Tensor:
        """Map sorted tokens to logits ``[M, B, C]``."""
        dtype = self.batch_norm.weight.dtype
        projected = self.input_proj(inputs).to(dtype).unflatten(1, (self.num_layers, -1))  # [M, L, B, 3R]
        state = projected.new_zeros(self.num_members, projected.shape[2], self.hidden)
        for given in projected.unbind(1):
            reset, update, new = given.chunk(3, dim=2)
            own_reset, own_update, own_new = self.hidden_proj(state).to(dtype).chunk(3, dim=2)
            update = (update + own_update).sigmoid()
            new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
            state = new + update * (state - new)
        logits: Tensor = self.classifier(self.batch_norm(state))
        return logits
