"""Tiny backbones: 32 px, 16 patches, 3 blocks of width 16. Every parameter is random, so none is left out unnoticed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.transformer import QuickGELU, Transformer
from open_clip.transformer import VisionTransformer as ClipTower
from PIL.Image import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from featcache.extraction.backbones.base import Backbone, LoadedModel, TokenLayout
from featcache.extraction.backbones.open_clip_vit import OpenClipViT
from featcache.extraction.backbones.timm_vit import TimmViT, layout_of
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL
from featcache.store.planning import TokenArray
from featcache.store.spec import BackboneSpec
from featcache.store.token_groups import POOLED

from .oracle import ForwardPass, gelu, open_clip_forward, quick_gelu, timm_forward

LAYERS, WIDTH, SIZE, PATCHES, HEADS = 3, 16, 32, 16, 2


def default_arrays(backbone: Backbone, kinds: Sequence[str] = ()) -> list[TokenArray]:
    """The paper's arrays: class token (where there is one) and average, or `kinds`, of `norm2` of every block and of the final norm."""
    spec = backbone.spec
    tokens = tuple(kinds) or (("cls", "ap") if backbone.layout.has_class_token else ("ap",))
    blocks = tuple(str(index) for index in range(spec.num_layers))
    return [
        TokenArray(DEFAULT_TAP, POOLED, blocks, spec.num_layers, tokens, spec.width),
        TokenArray(FINAL, POOLED, (FINAL,), 1, tokens, spec.width),
    ]


def to_tensor(image: Image) -> Tensor:
    """RGB image to ``[3, 32, 32]`` in -1..1."""
    pixels = np.asarray(image.resize((SIZE, SIZE)), np.float32) / 127.5 - 1
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def timm_vit(
    *, model_class: type[VisionTransformer] = VisionTransformer, num_classes: int = 0, **options: Any
) -> TimmViT:
    """A tiny backbone of timm; `options` go to its model."""
    model = model_class(
        img_size=SIZE,
        patch_size=8,
        embed_dim=WIDTH,
        depth=LAYERS,
        num_heads=HEADS,
        num_classes=num_classes,
        **options,
    )
    return TimmViT(loaded("timm:tiny", model, layout_of(model)))


def clip_vit(*, batch_first: bool = True, **options: Any) -> OpenClipViT:
    """A tiny tower of open_clip, with tokens batch-first or sequence-first inside the blocks."""
    tower = ClipTower(SIZE, 8, WIDTH, LAYERS, HEADS, mlp_ratio=4, output_dim=12, **options)
    if not batch_first:
        tower.transformer = Transformer(WIDTH, LAYERS, HEADS, batch_first=False, **options)
    return OpenClipViT(loaded("open_clip:tiny", tower, TokenLayout(True, 0, tower.grid_size)))


def clip_vit_oracle(
    act_layer: Callable[[], nn.Module] = nn.GELU,
) -> Callable[[Backbone, Tensor], ForwardPass]:
    activation = quick_gelu if act_layer is QuickGELU else gelu
    return lambda backbone, images: open_clip_forward(backbone.module.state_dict(), images, HEADS, activation)


def timm_oracle(backbone: Backbone, images: Tensor) -> ForwardPass:
    return timm_forward(backbone.module.state_dict(), images, HEADS)


def noise(batch: int, seed: int = 0) -> Tensor:
    """Random images ``[B, 3, 32, 32]``."""
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def num_hooks(backbone: Backbone) -> int:
    """Forward hooks on any module of a backbone."""
    modules = list(backbone.module.modules())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def randomise(model: nn.Module) -> nn.Module:
    """Make every parameter random, those too that a library starts at 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            spread = 0.3 if parameter.ndim < 2 else parameter.flatten(1).shape[1] ** -0.5
            # Scales of norms stay near 1, so that no layer dies.
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def loaded(
    architecture: str,
    model: nn.Module,
    layout: TokenLayout,
    *,
    num_layers: int = LAYERS,
    width: int = WIDTH,
    size: int = SIZE,
) -> LoadedModel:
    """A model with random weights as a family's loader gives it."""
    spec = BackboneSpec(architecture, "0" * 64, num_layers, width, size, {"interpolation": "bicubic"})
    return LoadedModel(spec, randomise(model), to_tensor, layout, {"origin": "memory"})


def record(backbone: Backbone, images: Tensor) -> tuple[ForwardPass, Tensor | None]:
    """What every tap of a backbone sees, batch first, and the embedding if it has one."""
    last = backbone.spec.num_layers
    taps: dict[str, list[Tensor]] = {tap: [torch.empty(0)] * last for tap in backbone.taps}
    final, embedding, handles = [], [], []
    for tap in backbone.taps:
        for block in range(last):

            def hook(module, inputs, output, tap=tap, block=block):  # type: ignore[no-untyped-def]
                tokens = backbone.tap_point(tap, block).tokens(inputs, output)
                taps[tap][block] = tokens.transpose(0, 1) if backbone.sequence_first else tokens

            handles.append(backbone.tap_point(tap, block).module.register_forward_hook(hook))
    handles.append(backbone.final_norm.register_forward_hook(lambda m, i, output: final.append(output)))
    if (point := backbone.embedding_point) is not None:
        handles.append(
            point.module.register_forward_hook(lambda m, i, o: embedding.append(point.tokens(i, o)))
        )
    with torch.inference_mode():
        output = backbone.forward(images)
    for handle in handles:
        handle.remove()
    return ForwardPass(taps, final[-1], output), embedding[-1] if embedding else None
