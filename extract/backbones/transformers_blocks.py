"""The blocks of vision transformers in Hugging Face transformers: their parts by name, held to the equations of a pre-norm block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import TapPoint
from featcache.extraction.backbones.prenorm import PreNormBlock
from featcache.extraction.backbones.transformers_trace import BlockList, first_tensor, same
from featcache.store.inventory import TAPS

# Names of the parts, in classes of transformers 4 and 5 and in the code of repositories.
_NORM1 = ("norm1", "layernorm_before", "layer_norm1", "rms_norm1", "ln_1", "ln1")
_NORM2 = ("norm2", "layernorm_after", "layer_norm2", "rms_norm2", "ln_2", "ln2")
_ATTENTION = ("attention", "self_attn", "attn")
_MLP = ("mlp", "ffn")
_PROJECTION = ("fc2", "down_proj", "weights_out", "c_proj", "w3", "w2")
_SCALES = (
    ("layer_scale1", "layer_scale2"),
    ("layer_scale_1", "layer_scale_2"),
    ("ls1", "ls2"),
    ("lambda_1", "lambda_2"),
    ("gamma_1", "gamma_2"),
)


@dataclass(frozen=True)
class BlockForm:
    """Names of the parts of a block."""

    norm1: str
    norm2: str
    attention: str
    mlp: tuple[str, ...]
    """The MLP, or the modules that make it up one after the other."""
    projection: str
    """The last map of the MLP."""
    scales: tuple[str, str] | None
    """What attention and MLP are multiplied with before they are added, if there is anything."""

    def point(self, block: nn.Module, tap: str, width: int) -> TapPoint:
        """Return the hook point of one of `TAPS` in a block."""
        if tap == "mlp":
            projection: Any = block.get_submodule(self.projection)
            return TapPoint(projection, projection.in_features, "input")
        names = {"norm1": self.norm1, "norm2": self.norm2, "attn": self.attention}
        return TapPoint(block if tap == "block" else block.get_submodule(names[tap]), width)

    def equations(self, block: nn.Module) -> PreNormBlock:
        """Return the block as modules that its taps can be recomputed with."""
        mlp = [block.get_submodule(name) for name in self.mlp]
        first, second = self.scales or (None, None)
        return PreNormBlock(
            block.get_submodule(self.norm1),
            block.get_submodule(self.norm2),
            mlp[0] if len(mlp) == 1 else nn.Sequential(*mlp),
            block.get_submodule(self.projection),
            _scale(block, first),
            _scale(block, second),
        )


def find_form(block: nn.Module, width: int) -> BlockForm | None:
    """Return the names of the parts of a block, of width `width`; None if they are not known. `form_holds` checks them."""
    names = {name for name, _ in block.named_modules()}
    norm1, norm2, attention, mlp = (
        next((name for name in usual if name in names), None) for usual in (_NORM1, _NORM2, _ATTENTION, _MLP)
    )
    parts: tuple[str, ...]
    if mlp is not None:
        parts, projection = (mlp,), _projection(block.get_submodule(mlp), mlp, width)
    elif {"intermediate", "output.dense"} <= names:
        # BERT's way to write an MLP; `output` itself adds the residual in some versions.
        parts, projection = ("intermediate", "output.dense"), "output.dense"
    else:
        return None
    if norm1 is None or norm2 is None or attention is None or projection is None:
        return None
    scales = next((pair for pair in _SCALES if all(hasattr(block, name) for name in pair)), None)
    return BlockForm(norm1, norm2, attention, parts, projection, scales)


@torch.no_grad()
def form_holds(form: BlockForm, blocks: BlockList, width: int) -> bool:
    """Return whether the parts of the first and of the last block follow from each other as those of a pre-norm block."""
    for index, (args, kwargs) in blocks.arguments.items():
        block = blocks.members[index]
        points = {tap: form.point(block, tap, width) for tap in TAPS}
        with _recorded(points) as taps:
            left = first_tensor(block(*args, **kwargs))
        entered = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if len(taps) != len(TAPS) or left is None:
            return False
        checks = form.equations(block).checks(entered, taps)
        if not all(same(check.recomputed, check.recorded) for check in checks):
            return False
    return True


def _projection(mlp: nn.Module, name: str, width: int) -> str | None:
    """Return the name of the linear map that gives the output of an MLP."""
    linear = {part: module for part, module in mlp.named_modules() if isinstance(module, nn.Linear)}
    fitting = [part for part, module in linear.items() if module.out_features == width]
    usual = [part for part in _PROJECTION if part in fitting]
    found = usual or [part for part in fitting if linear[part].in_features != width]
    return f"{name}.{found[0]}" if usual or len(found) == 1 else None


def _scale(block: nn.Module, name: str | None) -> Callable[[Tensor], Tensor]:
    part = None if name is None else getattr(block, name)
    if part is None:
        return lambda tokens: tokens
    if isinstance(part, nn.Module):
        return lambda tokens: part(tokens)
    return lambda tokens: tokens * part


@contextmanager
def _recorded(points: Mapping[str, TapPoint]) -> Iterator[dict[str, Tensor]]:
    """Yield what the taps of one block see in the pass within."""
    taps: dict[str, Tensor] = {}
    handles = []
    for tap, point in points.items():

        def hook(
            module: Any, inputs: tuple[Any, ...], output: Any, tap: str = tap, point: TapPoint = point
        ) -> None:
            tokens = point.tokens(inputs, output) if inputs or point.side == "output" else None
            if isinstance(tokens, Tensor):
                taps[tap] = tokens

        handles.append(point.module.register_forward_hook(hook))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
