"""Reading a weights file, and choosing one set of weights where a file holds several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featcache.store.errors import BackboneError, RequestError, UnknownNameError
from featcache.store.text import reason

TIMM_ORDER = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Names under which timm's `load_state_dict` looks for weights, in its order: averaged weights (EMA) first."""
OPEN_CLIP_ORDER = ("state_dict", "model")
"""The same for open_clip, which knows the first of these names, and no averaged weights."""
_DEPTH = 3
SEPARATOR = "/"
"""Between the names of nested sets, as in ``model/teacher``."""


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights of a file."""

    state: Mapping[str, Tensor]
    """Tensors by name."""
    taken: str = ""
    """Name of the set within the file, such as ``model_ema`` or ``model/teacher``; empty where the file is the set."""
    others: tuple[str, ...] = ()
    """Names of the other sets that the file holds."""

    @property
    def choice(self) -> dict[str, Any]:
        """The choice as recorded in the provenance; empty if the file has a single set."""
        return {"taken": self.taken, "not_taken": list(self.others)} if self.others else {}


def read_checkpoint(path: Path, order: tuple[str, ...], key: str | None = None) -> Checkpoint:
    """Read a weights file: safetensors, or a PyTorch file in weights-only mode (nothing in it is executed).

    Args:
        path: the file.
        order: names of sets; the first one that the file has is taken.
        key: name of the set to take instead, as `Checkpoint.taken` writes it; one that ends in ``.`` is a prefix of the
            names of tensors, such as ``teacher.``.

    Raises:
        BackboneError: the file cannot be read or holds no weights, or several sets without a usual name.
        UnknownNameError: the file has no set `key`.
    """
    content = _content(path)
    sets = dict(_sets(content))
    if key is not None:
        return _named(path, sets, key)
    if not sets and isinstance(content, Mapping):
        return Checkpoint({})  # the caller's error lists the names that the model lacks, which helps more
    if not sets:
        raise BackboneError(f"weights file {path} holds {type(content).__name__}, not a state dict")
    taken = _preferred_set(sets, order)
    if taken is None:
        taken = _teacher(sets)
    if taken is None:
        if len(sets) > 1:
            raise BackboneError(
                f"weights file {path} holds several sets of weights: {', '.join(sets)}; choose one with --weights-key "
                f"{next(iter(sets))}"
            )
        (taken,) = sets
    return _require_set(sets, taken)


def choice_text(source: Mapping[str, Any]) -> str | None:
    """Say which of several sets of weights was taken, from the provenance of the weights; None if there was one."""
    others = source.get("not_taken")
    if not others:
        return None
    taken = source.get("taken") or "the one without a name"
    return (
        f"{source.get('file')} holds several sets of weights: {taken} is taken, not {', '.join(others)} "
        "(--weights-key chooses another)"
    )


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise many kinds
        raise BackboneError(
            f"weights file {path} cannot be read ({reason(error)}); it must be safetensors, or a state dict saved by "
            "torch (no TorchScript archive, no pickled model)"
        ) from None


def _sets(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield all mappings of the file that hold tensors by name, with their paths; optimizer states hold none directly."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    tensors = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if any("." in key for key in tensors):
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str):
            yield from _sets(value, f"{name}{SEPARATOR}{key}" if name else key, depth + 1)


def _preferred_set(sets: Mapping[str, Any], order: tuple[str, ...]) -> str | None:
    """Return the set that the library would take: one of a usual name, nested sets included; else the file itself."""
    for name in order:
        inner = [path for path in sets if path.split(SEPARATOR)[0] == name]
        usual = [path for path in inner if {*path.split(SEPARATOR)} <= {*order}]
        if usual:
            return min(usual, key=lambda path: path.count(SEPARATOR))
    return "" if "" in sets else None


def _teacher(sets: Mapping[str, Any]) -> str | None:
    """Return the teacher of a pair of teacher and student, which is what the authors of DINO and iBOT evaluate."""
    pair = {path.rpartition(SEPARATOR)[2]: path for path in sets}
    return pair["teacher"] if len(sets) == 2 and pair.keys() == {"teacher", "student"} else None


def _named(path: Path, sets: Mapping[str, Mapping[str, Tensor]], key: str) -> Checkpoint:
    if key in sets:
        return _require_set(sets, key)
    if key.endswith("."):
        for name, tensors in sets.items():
            state = {
                tensor_name.removeprefix(key): value
                for tensor_name, value in tensors.items()
                if tensor_name.startswith(key)
            }
            if state:
                return Checkpoint(state, key, tuple(entry for entry in (name or "the rest",) if entry))
    valid = [name for name in sets if name]
    if not valid:
        raise RequestError(f"weights file {path} holds one set of weights; leave --weights-key out")
    raise UnknownNameError("set of weights", key, valid, f"({path})")


def _require_set(sets: Mapping[str, Mapping[str, Tensor]], taken: str) -> Checkpoint:
    others = tuple(name or "the one without a name" for name in sets if name != taken)
    return Checkpoint(sets[taken], taken, others)
