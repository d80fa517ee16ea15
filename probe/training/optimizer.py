"""AdamW for members that train side by side, each with a learning rate, a weight decay and a gradient norm of its own.

Shapes: M members.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from featcache.probing.protocols.protocol import Protocol


@dataclass(frozen=True)
class _MemberState:
    """One member's slices of everything that an update touches."""

    weight_decay: float
    parameters: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


class MemberAdamW:
    """`torch.optim.AdamW` with gradient clipping, for parameters ``[M, ...]``.

    torch's fused update takes one learning rate, so it runs once for each member, on slices: one pass over memory,
    where an update written for all members at once would take ten.

    Args:
        parameters: each ``[M, ...]``, contiguous; changed in place.
        weight_decays: one for each member.
        protocol: for betas, eps and the bound on the norm of a member's gradient.
    """

    def __init__(
        self, parameters: Sequence[Tensor], weight_decays: Sequence[float], protocol: Protocol
    ) -> None:
        self._protocol = protocol
        self.parameters = list(parameters)
        detached = [parameter.detach() for parameter in self.parameters]
        averages, squares = ([torch.zeros_like(parameter) for parameter in detached] for _ in range(2))
        self._members = [
            _MemberState(
                weight_decay,
                [parameter[member] for parameter in detached],
                [average[member] for average in averages],
                [square[member] for square in squares],
                [torch.zeros((), device=parameter.device) for parameter in detached],
            )
            for member, weight_decay in enumerate(weight_decays)
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rates: Sequence[float]) -> None:
        """Update every member once.

        Args:
            gradients: in the form and order of the parameters; changed where they are clipped.
            learning_rates: one for each member.
        """
        # torch's fused update reads memory in the order of the parameter, whatever the strides of the gradient.
        gradients = [gradient.contiguous() for gradient in gradients]
        scales = self._clip_scales(gradients)
        beta1, beta2 = self._protocol.betas
        for index, (member, learning_rate) in enumerate(zip(self._members, learning_rates, strict=True)):
            adamw(
                member.parameters,
                [gradient[index] for gradient in gradients],
                member.exp_avgs,
                member.exp_avg_sqs,
                [],
                member.steps,
                fused=True,
                grad_scale=scales[index],
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=learning_rate,
                weight_decay=member.weight_decay,
                eps=self._protocol.eps,
                maximize=False,
            )

    def _clip_scales(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """What every member's gradient is to be divided by, as `torch.nn.utils.clip_grad_norm_` would; None for 1.

        The update divides as it goes, which saves a pass over memory.
        """
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        scale = ((norm + 1e-6) / self._protocol.grad_clip_norm).clamp(min=1).float()
        if scale.device.type == "cpu":  # elsewhere, looking would wait for the device
            return [one if one > 1 else None for one in scale]
        return list(scale)
