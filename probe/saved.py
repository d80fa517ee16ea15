"""Trained heads on disk: safetensors for the parameters, JSON for what they mean. Nothing is ever unpickled."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from featcache.probe.heads import get_head
from featcache.probe.heads.base import Head
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, read_sealed, write_atomic, write_sealed

CONFIG_FILE = "head.json"
PARAMETERS_FILE = "head.safetensors"


@dataclass(frozen=True)
class HeadConfig:
    """What a saved head is and was trained on."""

    head: str
    layers: Sequence[str]
    tokens: Sequence[str]
    """Token kinds, such as ``cls`` or ``patches``."""
    num_tokens: int
    """T."""
    options: Mapping[str, int]
    """What the head takes besides its size, such as ``num_heads``."""
    width: int
    """Token width D."""
    num_classes: int
    class_names: Sequence[str]
    cache_key: str
    architecture: str
    """Of the backbone."""
    weights_digest: str
    """Of the backbone."""
    protocol: str
    seed: int

    @classmethod
    def from_dict(cls, document: JsonObject, where: str) -> Self:
        """Read a config back.

        Raises:
            CacheError: a field is missing or of the wrong type.
        """
        kinds: dict[str, type] = dict.fromkeys(cls.__dataclass_fields__, str)
        kinds |= dict.fromkeys(("layers", "tokens", "class_names"), list)
        kinds |= dict.fromkeys(("num_tokens", "width", "num_classes", "seed"), int)
        kinds["options"] = dict
        return cls(**{name: field(document, name, kind, where) for name, kind in kinds.items()})


def save_head(directory: Path, head: Head, config: HeadConfig) -> None:
    """Write a head of one member into `directory`, the config last."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.member_state().items()}
    write_atomic(directory / PARAMETERS_FILE, save_tensors(state))
    document = asdict(config)
    write_sealed(directory / CONFIG_FILE, document)


def load_head(directory: Path) -> tuple[Head, HeadConfig]:
    """Read a head back, in eval mode on the CPU.

    Raises:
        FileNotFoundError: there is no head.
        CacheError: the files are damaged or do not fit each other.
    """
    path = directory / CONFIG_FILE
    config = HeadConfig.from_dict(read_sealed(path), str(path))
    info = get_head(config.head)
    try:
        head = info.build(config.num_tokens, config.width, config.num_classes, (0.0,), **config.options)
        head.load_member(load_tensors((directory / PARAMETERS_FILE).read_bytes()))
    except Exception as error:  # safetensors and torch raise many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CacheError(f"{directory / PARAMETERS_FILE} does not fit {CONFIG_FILE} ({reason})") from None
    return head.eval(), config
