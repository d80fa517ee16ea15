"""Trained heads on disk: safetensors for the parameters, JSON for what they mean. Nothing is ever unpickled."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from featcache.probing.heads import get_head
from featcache.probing.heads.base import Head
from featcache.probing.inputs.selection import Part, Selection
from featcache.probing.results.head_sources import HeadSource
from featcache.probing.results.large_tensors import write_tensors
from featcache.store.errors import CacheError, RequestError
from featcache.store.files import (
    JsonObject,
    canonical_json,
    field,
    read_sealed,
    sha256_hex,
    write_atomic,
    write_sealed,
)
from featcache.store.inventory import TAPS
from featcache.store.layers import FINAL
from featcache.store.reading.reader import Cache
from featcache.store.spec import PILLOW, BackboneSpec
from featcache.store.token_groups import EMBEDDING, parse_array_name
from featcache.store.views import PLAIN_VIEW, View

CONFIG_FILE = "head.json"
PARAMETERS_FILE = "head.safetensors"
LARGE_BYTES = 2**28
"""Parameters of this size and more are written without a copy in memory."""
HEAD_VERSIONS = (1, 2)
"""Versions of head.json that this featcache reads. The first one has no field ``version``, and does not describe its caches."""
_LATER_FIELDS = ("views", "sources", "units", "input_stages", "temperature")


@dataclass(frozen=True)
class HeadConfig:
    """What a saved head is and was trained on."""

    head: str
    layers: Sequence[str]
    tokens: Sequence[str]
    """Token kinds, such as ``cls`` or ``patches``."""
    num_tokens: int
    """T."""
    options: Mapping[str, Any]
    """What the head takes besides its size, such as ``num_heads``."""
    input: str
    """Input transform; its numbers are among the parameters."""
    target_kind: str
    """``single-label``, ``multi-label`` or ``regression``."""
    width: int
    """Token width D."""
    num_classes: int
    """Or outputs of a regression."""
    class_names: Sequence[str]
    """Or names of the quantities."""
    cache_key: str
    architecture: str
    """Of the backbone."""
    weights_digest: str
    """Of the backbone."""
    protocol: str
    seed: int
    parts: Sequence[tuple[str, Sequence[str], Sequence[str]]]
    """Array, layers and tokens of each part of the T tokens, in the order in which the head sees them."""
    features: str
    """What stands for the function from image to tokens; see `features_digest`."""
    views: Sequence[str] = (PLAIN_VIEW,)
    """Views of every image that it was trained on; it predicts by averaging over them."""
    sources: Sequence[HeadSource] = ()
    """The caches that it was trained on; none in a head that an earlier version saved."""
    units: Sequence[str] = ()
    """Unit of every quantity of a regression, empty where there is none."""
    input_stages: Sequence[Mapping[str, Any]] = ()
    """Stages that follow the input transform, in order, each with its ``name`` and options; their numbers are among the parameters."""
    temperature: float | None = None
    """Number that logits are divided by before they become probabilities; None where none was fitted."""

    @property
    def selection(self) -> Selection:
        """The tokens that the head sees."""
        parts = tuple(
            Part(group, tuple(layers), tuple(tokens), tap)
            for array, layers, tokens in self.parts
            for tap, group in [parse_array_name(array)]
        )
        return Selection(
            ",".join(self.layers), tuple(self.layers), tuple(self.tokens), parts, tuple(self.views)
        )

    @classmethod
    def from_dict(cls, document: JsonObject, where: str) -> Self:
        """Read a config back.

        Raises:
            CacheError: a field is missing or of the wrong type.
        """
        kinds: dict[str, type] = dict.fromkeys(cls.__dataclass_fields__, str)
        kinds |= dict.fromkeys(("layers", "tokens", "class_names", "parts", "views"), list)
        kinds |= dict.fromkeys(("num_tokens", "width", "num_classes", "seed"), int)
        kinds["options"] = dict
        kinds |= dict.fromkeys(("sources", "units", "input_stages"), list)
        kinds["temperature"] = float
        version = document.get("version", 1)
        if version not in HEAD_VERSIONS:
            raise CacheError(
                f"{where}: head version {version!r}; this featcache reads versions {' and '.join(map(str, HEAD_VERSIONS))}: "
                "upgrade featcache"
            )
        # Absent are views of the plain one alone, and what earlier versions did not write.
        values = {
            name: field(document, name, kind, where)
            for name, kind in kinds.items()
            if _is_given(document, name)
        }
        values["sources"] = [HeadSource.from_dict(source, where) for source in values.get("sources", ())]
        config = cls(**values)
        _check_parts(config, where)
        return config


def _is_given(document: JsonObject, name: str) -> bool:
    return name not in _LATER_FIELDS or document.get(name) is not None


def features_digest(backbone: BackboneSpec, views: Sequence[View] = ()) -> str:
    """Digest of everything that fixes the function from image to tokens: caches that share it have tokens that mean the same.

    The version of resizing is left out, as the precision is: pixels differ by 2 of 255 at most, so a head trained on tokens of a
    cache made on a GPU predicts from those of one made on a CPU, and from those of earlier versions. So is the EXIF orientation: it
    says which way up an image is shown to the backbone, not what a token means.
    """
    document: JsonObject = asdict(backbone.resized_by(PILLOW).with_upright(False))
    if views:  # what has none keeps the digest of before
        document["views"] = {view.name: view.to_dict() for view in views}
    return sha256_hex(canonical_json(document))


def views_in(cache: Cache, names: Sequence[str]) -> list[View]:
    """Return the views of `names` besides the plain one, as a cache holds them.

    Raises:
        RequestError: it does not hold one.
    """
    held = cache.manifest.full_inventory.views
    missing = [name for name in names if name != PLAIN_VIEW and name not in held]
    if missing:
        raise RequestError(
            f"{cache.directory} holds no view {', '.join(missing)}; the same `featcache extract` with --views {','.join(missing)} adds "
            "it"
        )
    return [held[name] for name in names if name != PLAIN_VIEW]


def describe_parts(selection: Selection) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """The parts of a selection, as a head's config holds them."""
    return [(part.array, part.layers, part.tokens) for part in selection.parts]


def _check_parts(config: HeadConfig, where: str) -> None:
    """Hold the parts to the rest: a config may come from anywhere."""
    try:
        texts = [text for array, layers, tokens in config.parts for text in (array, *layers, *tokens)]
        fits = all(isinstance(text, str) for text in texts) and (
            config.selection.num_tokens == config.num_tokens
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise CacheError(f"{where}: field 'parts' does not make the {config.num_tokens} tokens of the head")
    if not config.views or not all(isinstance(name, str) for name in config.views):
        raise CacheError(f"{where}: field 'views' must be a list of names, got {str(config.views)[:60]}")
    if config.temperature is not None or config.input_stages:
        raise CacheError(
            f"{where}: the head has a temperature or input stages, which this featcache does not apply: upgrade featcache"
        )
    if not {part.tap for part in config.selection.parts} <= {*TAPS, FINAL, EMBEDDING}:
        raise CacheError(
            f"{where} is of an earlier version of featcache, which named tokens in another way; train it again"
        )


def save_head(directory: Path, head: Head, config: HeadConfig) -> None:
    """Write a head of one member into `directory`, the config last."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.member_state().items()}
    if sum(tensor.nbytes for tensor in state.values()) < LARGE_BYTES:
        write_atomic(directory / PARAMETERS_FILE, save_tensors(state))
    else:
        write_tensors(directory / PARAMETERS_FILE, state)
    document: JsonObject = {"version": max(HEAD_VERSIONS), **asdict(config)}
    document["sources"] = [source.to_dict() for source in config.sources]
    if tuple(config.views) == (PLAIN_VIEW,):  # as earlier versions wrote it, and can read it
        del document["views"]
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
