"""DINOv2 ViT-S/14 from an ONNX graph with Hugging Face's names to a safetensors file with timm's names.

    python demo/convert_dinov2.py --onnx vit_s_focus.onnx --out dinov2_vits14.safetensors --check

The result loads strictly into timm's `vit_small_patch14_dinov2.lvd142m` built with `img_size=<input size>` and
`num_classes=0`.

Notation used for tensor shapes: D width, G patches along one side.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demo_tools import DemoError, atomic_file, run

if TYPE_CHECKING:
    from onnx_weights import Array, OnnxWeights

SOURCE = "backbone."
"""What the graph's authors put before the names of the encoder."""

TENSORS = {
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK_TENSORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
BLOCK_LINEARS = {
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
"""timm's name to the source's; several linear layers are stacked along the outputs, in this order."""


def convert(onnx_path: Path, input_size: int = 224) -> dict[str, Array]:
    """The encoder's weights, float32 and C-contiguous, under timm's names.

    Args:
        onnx_path: The graph; see `onnx_weights` for how tensors without a name are found.
        input_size: Side of the square input images in pixels, a multiple of the patch size.

    Raises:
        DemoError: The file is not such a graph (the message names the missing tensor), or the input
            size does not fit its patches.
    """
    from onnx_weights import OnnxWeights

    weights = OnnxWeights(onnx_path)
    state = {"cls_token": weights.tensor(f"{SOURCE}embeddings.cls_token")}
    for name, source in TENSORS.items():
        state[name] = weights.tensor(SOURCE + source)
    for index in range(weights.depth(f"{SOURCE}encoder.layer.")):
        state |= _convert_block(weights, index)
    patch_size = state["patch_embed.proj.weight"].shape[-1]
    if input_size <= 0 or input_size % patch_size:
        raise DemoError(
            f"--input-size must be a positive multiple of the patch size {patch_size}, got {input_size}"
        )
    class_position, patch_positions = weights.position_embeddings(f"{SOURCE}embeddings.cls_token")
    resized = resize_positions(patch_positions, input_size // patch_size)
    state["pos_embed"] = np.concatenate([class_position, resized], axis=1)
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def _convert_block(weights: OnnxWeights, index: int) -> dict[str, Array]:
    source, target = f"{SOURCE}encoder.layer.{index}.", f"blocks.{index}."
    state = {target + name: weights.tensor(source + origin) for name, origin in BLOCK_TENSORS.items()}
    for name, origins in BLOCK_LINEARS.items():
        matrices, biases = zip(*(weights.linear(source + origin) for origin in origins), strict=True)
        state[f"{target}{name}.weight"] = np.concatenate(matrices)
        state[f"{target}{name}.bias"] = np.concatenate(biases)
    return state


def resize_positions(positions: Array, side: int) -> Array:
    """Position embeddings of a square grid, (1, G*G, D), resized to `side` patches a side, (1, side*side, D).

    Raises:
        DemoError: The grid is not square.
    """
    import torch

    old_side = math.isqrt(positions.shape[1])
    if old_side**2 != positions.shape[1]:
        raise DemoError(
            f"the {positions.shape[1]} patch position embeddings are no square grid; use another graph"
        )
    # (1, G*G, D) -> (1, D, G, G), in float64: rounding to float32 at the end hides in what order a CPU's
    # instructions add, so that the file gets the same bytes on different machines.
    grid = torch.tensor(positions, dtype=torch.float64).reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    # Not antialiased: the model's own code resizes so. timm's antialiased resize moves features by 0.4.
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False, antialias=False
    )
    # (1, D, side, side) -> (1, side*side, D)
    resized: Array = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).float().numpy()
    return resized


def save(state: dict[str, Array], out: Path) -> None:
    """Writes `state` as safetensors; `out` appears whole or not at all, and equal weights give equal bytes."""
    from safetensors.numpy import save as to_bytes

    # One metadata entry only: safetensors does not promise an order for several.
    data = to_bytes(state, metadata={"format": "pt"})
    with atomic_file(out) as file:
        file.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Turns the ONNX export of DINOv2 ViT-S/14 into timm's weights."
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="ONNX graph to read")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--input-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--check", action="store_true", help="compare with ONNX Runtime before writing")
    args = parser.parse_args()
    state = convert(args.onnx, args.input_size)
    if args.check:
        from check_dinov2 import require_agreement

        difference = require_agreement(args.onnx, state, args.input_size)
        print(f"largest difference to ONNX Runtime: {difference:.1e}")
    save(state, args.out)
    print(f"wrote {args.out} for {args.input_size} pixel images")


if __name__ == "__main__":
    sys.exit(run(main))
