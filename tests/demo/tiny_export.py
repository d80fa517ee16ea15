"""A tiny vision transformer's ONNX graph as PyTorch's exporter writes it, with the weights known.

D = 8, two layers, patches of 2x2 pixels, positions for a 3x3 grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

DIM, HIDDEN, DEPTH, PATCH, SIDE = 8, 16, 2, 2, 3
EMBEDDINGS = "backbone.embeddings."


@dataclass
class TinyExport:
    """Builds the graph node by node; `expected` collects the same weights under timm's names."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    expected: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def model(self, without: str | None = None) -> onnx.ModelProto:
        """The graph with its initialisers in shuffled order, less the one called `without`."""
        tokens = self._layernorm("norm", "backbone.layernorm", self._blocks(self._embeddings()))
        tensors = [
            numpy_helper.from_array(array, name) for name, array in self.tensors.items() if name != without
        ]
        order = self.rng.permutation(len(tensors))
        size = SIDE * PATCH
        images = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, size, size])
        output = helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "tiny", [images], [output], [tensors[index] for index in order])
        return helper.make_model(graph)

    def _blocks(self, tokens: str) -> str:
        for index in range(DEPTH):
            source, target = f"backbone.encoder.layer.{index}.", f"blocks.{index}."
            x = self._layernorm(f"{target}norm1", f"{source}norm1", tokens)
            # The exporter puts key and value before query, and the bias of these first in its Add.
            heads = {name: self._linear(f"{source}attention.attention.{name}", x, DIM, DIM, bias_first=True)
                     for name in ("key", "value", "query")}  # fmt: skip
            for part, kind in enumerate(("weight", "bias")):
                stacked = [heads[name][part] for name in ("query", "key", "value")]
                self.expected[f"{target}attn.qkv.{kind}"] = np.concatenate(stacked)
            x = self._node("Attention", *(heads[name][2] for name in ("query", "key", "value")))
            x = self._named_linear(f"{target}attn.proj", f"{source}attention.output.dense", x, DIM, DIM)
            x = self._scale(f"{target}ls1.gamma", f"{source}layer_scale1.lambda1", x)
            tokens = self._node("Add", x, tokens)
            x = self._layernorm(f"{target}norm2", f"{source}norm2", tokens)
            x = self._named_linear(f"{target}mlp.fc1", f"{source}mlp.fc1", x, DIM, HIDDEN)
            x = self._named_linear(f"{target}mlp.fc2", f"{source}mlp.fc2", self._node("Gelu", x), HIDDEN, DIM)
            x = self._scale(f"{target}ls2.gamma", f"{source}layer_scale2.lambda1", x)
            tokens = self._node("Add", x, tokens)
        return tokens

    def _embeddings(self) -> str:
        projection = f"{EMBEDDINGS}patch_embeddings.projection"
        kernel = self._store(f"{projection}.weight", (DIM, 3, PATCH, PATCH), "patch_embed.proj.weight")
        bias = self._store(f"{projection}.bias", (DIM,), "patch_embed.proj.bias")
        patches = self._node(
            "Transpose", self._node("Reshape", self._node("Conv", "image", kernel, bias), "shape")
        )
        class_token = self._store(f"{EMBEDDINGS}cls_token", (1, 1, DIM), "cls_token")
        tokens = self._node("Concat", self._node("Expand", class_token, "shape"), patches)
        self._node("Shape", tokens)
        class_position, grid = (
            self._store("onnx::Concat_9", (1, 1, DIM)),
            self._store("onnx::R_1", (1, SIDE**2, DIM)),
        )
        self.expected["pos_embed"] = np.concatenate(
            [self.tensors[class_position], self.tensors[grid]], axis=1
        )
        for op_type in ("Reshape", "Transpose", "Cast", "Resize", "Cast", "Transpose", "Reshape"):
            grid = self._node(op_type, grid, "shape")
        return self._node("Add", tokens, self._node("Concat", class_position, grid))

    def _named_linear(self, target: str, source: str, x: str, inputs: int, outputs: int) -> str:
        weight, bias, y = self._linear(source, x, inputs, outputs, bias_first=False)
        self.expected |= {f"{target}.weight": weight, f"{target}.bias": bias}
        return y

    def _linear(
        self, source: str, x: str, inputs: int, outputs: int, *, bias_first: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        bias = self._store(f"{source}.bias", (outputs,))
        transposed = self._store(f"onnx::MatMul_{self.rng.integers(10**12)}", (inputs, outputs))
        product = self._node("MatMul", x, transposed)
        y = self._node("Add", *((bias, product) if bias_first else (product, bias)))
        return self.tensors[transposed].T, self.tensors[bias], y

    def _layernorm(self, target: str, source: str, x: str) -> str:
        weight = self._store(f"{source}.weight", (DIM,), f"{target}.weight")
        bias = self._store(f"{source}.bias", (DIM,), f"{target}.bias")
        return self._node("Add", self._node("Mul", self._node("Div", x, x), weight), bias)

    def _scale(self, target: str, source: str, x: str) -> str:
        return self._node("Mul", x, self._store(source, (DIM,), target))

    def _store(self, name: str, shape: tuple[int, ...], target: str | None = None) -> str:
        self.tensors[name] = self.rng.standard_normal(shape, dtype=np.float32)
        if target:
            self.expected[target] = self.tensors[name]
        return name

    def _node(self, op_type: str, *inputs: str) -> str:
        output = f"/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output]))
        return output
