"""AdamW for members that train side by side, each with a learning rate, a weight decay and a gradient norm of its own.

Shapes: M members.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from featcache.probing.protocols.protocol import Protocol


@dataclass(frozen=True)
class _Slices:
    """The slices of everything that an update of some members touches, run after run of neighboring members."""

    runs: list[slice]

    parameters: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    """The same tensor for each slice: all have made the same number of updates."""


class MemberAdamW:
    """`torch.optim.AdamW` with gradient clipping, for parameters ``[M, ...]``.

    torch's fused update takes one learning rate and one weight decay, so it runs once for all members that share both, on slices:
    one pass over memory, where an update written for all members at once would take ten. Its operator is called without torch's
    Python functions around it, which take longer than the update of a small head.

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
        self._weight_decays = list(weight_decays)
        detached = [parameter.detach() for parameter in self.parameters]
        self._state = [detached, *([torch.zeros_like(parameter) for parameter in detached] for _ in range(2))]
        self._step = torch.zeros((), device=detached[0].device)
        self._slices: dict[tuple[int, ...], _Slices] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rates: Sequence[float]) -> None:
        """Update every member once.

        Args:
            gradients: in the form and order of the parameters; changed where they are clipped.
            learning_rates: one for each member.
        """
        # torch's fused update reads memory in the order of the parameter, whatever the strides of the gradient.
        gradients = [gradient.contiguous() for gradient in gradients]
        scales = self._clip(gradients)
        together: dict[tuple[float, float, int | None], list[int]] = defaultdict(list)
        for member, shared in enumerate(zip(learning_rates, self._weight_decays, strict=True)):
            together[(*shared, member if member in scales else None)].append(member)
        self._step += 1
        beta1, beta2 = self._protocol.betas
        for (learning_rate, weight_decay, clipped), members in together.items():
            slices = self._slices_of(tuple(members))
            torch._fused_adamw_(
                slices.parameters,
                [gradient[run] for run in slices.runs for gradient in gradients],
                slices.exp_avgs,
                slices.exp_avg_sqs,
                [],
                slices.steps,
                lr=learning_rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=weight_decay,
                eps=self._protocol.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=None if clipped is None else scales[clipped],
            )

    def _slices_of(self, members: tuple[int, ...]) -> _Slices:
        if members not in self._slices:
            runs = _runs(members)
            parameters, averages, squares = (
                [tensor[run] for run in runs for tensor in tensors] for tensors in self._state
            )
            self._slices[members] = _Slices(
                runs, parameters, averages, squares, [self._step] * len(parameters)
            )
        return self._slices[members]

    def _clip(self, gradients: Sequence[Tensor]) -> dict[int, Tensor]:
        """Bound the norm of every member's gradient as `torch.nn.utils.clip_grad_norm_` does.

        Returns:
            By member, the number that the update is to divide the gradient by, which saves a pass over memory. A GPU would have to
            be waited for to know which members these are, so there all gradients are divided here, most of them by 1.
        """
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        scale = ((norm + 1e-6) / self._protocol.grad_clip_norm).clamp(min=1).float()
        if scale.device.type == "cpu":
            return {member: scale[member] for member, value in enumerate(scale.tolist()) if value > 1}
        for gradient in gradients:
            gradient /= scale.view(-1, *[1] * (gradient.ndim - 1))
        return {}


def _runs(members: tuple[int, ...]) -> list[slice]:
    """Divide ascending numbers of members into runs of neighbors: torch's threads meet after every slice, so few large ones are best."""
    runs = groupby(enumerate(members), key=lambda item: item[1] - item[0])
    return [slice(run[0][1], run[-1][1] + 1) for _, group in runs if (run := list(group))]
