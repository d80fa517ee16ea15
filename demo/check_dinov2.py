"""Do converted weights compute in timm what the ONNX graph computes in ONNX Runtime?

Notation used for tensor shapes: B images, S input size in pixels, T tokens (class token first), D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from convert_dinov2 import SOURCE
from demo_tools import DemoError
from onnx_weights import Array, OnnxWeights

TIMM_MODEL = "vit_small_patch14_dinov2"
TOLERANCE = 1e-4
"""Largest difference that float32 arithmetic in another order explains: 1.5e-5 is usual, and a wrongly resized
position embedding, the subtlest mistake known, gives 0.4."""


def require_agreement(
    onnx_path: Path, state: dict[str, Array], input_size: int = 224, n_images: int = 3
) -> float:
    """Returns the largest difference of any feature over `n_images` random images.

    Raises:
        DemoError: The difference is above `TOLERANCE`.
    """
    images = np.random.default_rng(0).standard_normal((n_images, 3, input_size, input_size), dtype=np.float32)
    difference = float(np.abs(onnx_tokens(onnx_path, images) - timm_tokens(state, images)).max())
    if not difference <= TOLERANCE:  # so written, a NaN fails too
        raise DemoError(
            f"timm's features differ from ONNX Runtime's by {difference:.1e}, more than {TOLERANCE:.0e}; "
            f"{onnx_path} is not a plain DINOv2 ViT-S/14, use another graph"
        )
    return difference


def onnx_tokens(onnx_path: Path, images: Array) -> Array:
    """Tokens after the final norm, (B, T, D), that ONNX Runtime computes for `images` (B, 3, S, S)."""
    import onnx
    import onnxruntime

    weights = OnnxWeights(onnx_path)
    name = weights.output_after(f"{SOURCE}layernorm.bias")
    graph = weights.model.graph
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    # The nodes work for every size; only the declaration of the input is fixed to that of the export.
    for axis, size in zip(graph.input[0].type.tensor_type.shape.dim[2:], images.shape[2:], strict=True):
        axis.dim_value = size
    session = onnxruntime.InferenceSession(
        weights.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return cast("Array", session.run([name], {graph.input[0].name: images})[0])


def timm_tokens(state: dict[str, Array], images: Array) -> Array:
    """Tokens after the final norm, (B, T, D), that timm computes for `images` (B, 3, S, S) with `state`."""
    import timm
    import torch

    model: Any = timm.create_model(TIMM_MODEL, pretrained=False, num_classes=0, img_size=images.shape[-1])
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    with torch.inference_mode():
        return cast("Array", model.eval().forward_features(torch.from_numpy(images)).numpy())
