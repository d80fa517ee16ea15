"""Safetensors files of tensors that may be maps of files, written piece by piece: the library's own function copies all of them first."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from featcache.store.files import atomic_file

# Bytes written at once.
PIECE_BYTES = 2**26
# Names of the types in the format; see https://github.com/huggingface/safetensors.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU as a safetensors file, in one step and durably.

    Raises:
        OSError: the disk is full, broken or gone.
    """
    # Wide types first, as the library has it, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
    for name in names:
        tensor = tensors[name]
        stop = offset + tensor.nbytes
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_file(path) as partial, partial.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = tensors[name].reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(values), PIECE_BYTES):
                file.write(values[start : start + PIECE_BYTES].data)
