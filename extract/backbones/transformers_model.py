"""Vision towers of Hugging Face transformers: the class that a configuration asks for, and its weights, of which none may be random."""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.auto_factory import get_class_from_dynamic_module

from featcache.extraction.backbones.transformers_repository import Repository
from featcache.extraction.backbones.transformers_trace import UnsuitableModelError
from featcache.store.errors import BackboneError, RequestError
from featcache.store.files import canonical_json, sha256_hex

# Values that change no feature: names, training, what is returned, and heads that are not loaded.
_WITHOUT_EFFECT = frozenset(
    [
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "decoder_hidden_size",
        "decoder_intermediate_size",
        "decoder_num_attention_heads",
        "decoder_num_hidden_layers",
        "drop_path_rate",
        "dtype",
        "encoder_stride",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "mask_ratio",
        "norm_pix_loss",
        "num_labels",
        "out_features",
        "out_indices",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "reshape_hidden_states",
        "return_dict",
        "stage_names",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_return_dict",
    ]
)
_DIGITS = 12


@dataclass(frozen=True)
class TowerPlan:
    """What is to be made, before any weights are there."""

    tower: type[nn.Module]
    """The class."""
    config: Any
    definition: str
    """Name of the class and digest of all values of the configuration that its features depend on, and of the repository's code."""
    uses_code: bool
    """Whether the class is code of the repository."""


@dataclass(frozen=True)
class LoadedTower:
    """A model with its weights."""

    module: nn.Module
    weights: list[Path]
    without: str
    """Parts of the model that the weights do not have and that were left out; empty if there are none."""


def plan_tower(repository: Repository, trust_remote_code: bool) -> TowerPlan:
    """Find the class of a repository's vision tower; of the text tower of a pair nothing is made.

    Raises:
        RequestError: the repository needs its own code, and that is not trusted.
        BackboneError: transformers knows no such model.
        UnsuitableModelError: the class is none that can be a backbone.
    """
    content = repository.configuration
    references = content.get("auto_map") if isinstance(content.get("auto_map"), dict) else {}
    assert isinstance(references, dict)
    name = repository.name.explicit
    if "timm" in str(content.get("model_type")) or (
        "architecture" in content and "model_type" not in content
    ):
        hint = f"timm:{content.get('architecture', 'NAME')}"
        raise UnsuitableModelError(f"is a model of timm; write {hint}, see `featcache models`")
    native = content.get("model_type") in transformers.CONFIG_MAPPING
    uses_code = not native and bool(references)
    if uses_code and not trust_remote_code:
        raise RequestError(
            f"{name} needs code of its own repository, which runs on this machine with your rights: read it, then give "
            "--trust-remote-code"
        )
    if not native and not references:
        raise BackboneError(
            f"{name}: transformers {transformers.__version__} knows no model type {content.get('model_type')!r}; a newer one may: "
            "pip install --upgrade transformers"
        )
    if uses_code:
        repository.fetch_code([value for value in references.values() if isinstance(value, str)])
    config = transformers.AutoConfig.from_pretrained(repository.folder, trust_remote_code=uses_code)
    if uses_code:
        if not isinstance(references.get("AutoModel"), str):
            raise UnsuitableModelError("has code of its own, but names no class for AutoModel in config.json")
        tower = get_class_from_dynamic_module(references["AutoModel"], str(repository.folder))
    else:
        tower, config = _native_tower(config)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # masked autoencoders see the whole image
    return TowerPlan(tower, config, _definition(tower, config, uses_code), uses_code)


def _native_tower(config: Any) -> tuple[type[nn.Module], Any]:
    """Return the class of transformers for the image tower of a configuration, and the tower's own configuration."""
    vision = getattr(config, "vision_config", None)
    projects = "WithProjection" in str((config.architectures or [""])[0])
    if isinstance(vision, transformers.PreTrainedConfig):
        # A pair of towers projects both; the width of the projection is a matter of the pair.
        projects = hasattr(config, "projection_dim") and hasattr(vision, "projection_dim")
        if projects:
            vision.projection_dim = config.projection_dim
        config = vision
    usual = getattr(transformers, type(config).__name__.replace("Config", "Model"), None)
    tower = transformers.MODEL_MAPPING.get(type(config), usual)
    if isinstance(tower, tuple | list):
        tower = tower[0]
    if tower is None:
        raise UnsuitableModelError(
            f"is a {config.model_type}, for which transformers has no model without a head"
        )
    projecting = getattr(transformers, f"{tower.__name__}WithProjection", None)
    return projecting if projects and projecting is not None else tower, config


def _definition(tower: type[nn.Module], config: Any, uses_code: bool) -> str:
    """Name the function that a class computes: values at their defaults are left out, so that new fields change no key."""
    values = _plain(config.to_dict())
    try:
        defaults = _plain(type(config)().to_dict())
    except Exception:  # a configuration without defaults
        defaults = {}
    stated = {
        name: value
        for name, value in values.items()
        if name not in _WITHOUT_EFFECT and not (name in defaults and defaults[name] == value)
    }
    if uses_code:
        stated["code"] = _code_digest(tower)
    return f"{tower.__name__}/{sha256_hex(canonical_json(stated))[:_DIGITS]}"


def _code_digest(tower: type[nn.Module]) -> str:
    """Return the digest of the repository's code that was loaded for a class; transformers keeps its modules in one folder."""
    import inspect

    folder = Path(inspect.getfile(tower)).parent
    return sha256_hex(b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def empty_tower(plan: TowerPlan) -> nn.Module | None:
    """Make the model without storage, to look at its form before gigabytes are fetched; None if its code does not allow that."""
    try:
        with quiet(), torch.device("meta"):
            return plan.tower(plan.config).eval()
    except Exception:  # whatever a model reads while it is made
        return None


def load_tower(repository: Repository, plan: TowerPlan, state: Mapping[str, Tensor] | None) -> LoadedTower:
    """Make the model with its weights in float32.

    Args:
        repository: where the weights are, if `state` is not given.
        plan: what to make.
        state: tensors of a weights file, in any names that transformers converts.

    Raises:
        ValueError: the weights do not fill the model, or hold more of its blocks than it has.
    """
    weights = [] if state is not None else repository.weights()
    if plan.uses_code:
        model, without = _filled_by_name(plan, _tensors(weights, "") if state is None else state)
        return LoadedTower(model, weights, without)
    try:
        loaded = _filled(plan, None if state is not None else repository.folder, state)
    except IncompleteWeightsError:
        # A model of images and texts keeps its image tower under a name of its own, which not every class expects.
        for part in _image_parts(weights) if state is None else _parts_of(state):
            with suppress(IncompleteWeightsError):
                loaded = _filled(
                    plan, None, _tensors(weights, part) if state is None else _stripped(state, part)
                )
                break
        else:
            raise
    return LoadedTower(loaded[0], weights, loaded[1])


class IncompleteWeightsError(ValueError):
    """Weights lack tensors of the model."""


def _filled_by_name(plan: TowerPlan, state: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """Return a model of a repository's own code with tensors of its own names, and the parts that were left out.

    Code that was written for earlier versions of transformers is not made for `from_pretrained` of this one.
    """
    with quiet():
        model = plan.tower(plan.config).float()
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    missing, _ = model.load_state_dict(fitting, strict=False)
    wrong = [name for name in state if name in own and name not in fitting]
    report = {
        "missing_keys": [name for name in missing if name not in wrong],
        "unexpected_keys": [name for name in state if name not in own],
        "mismatched_keys": [(name, state[name].shape, own[name].shape) for name in wrong],
    }
    return model.eval(), _require_complete(model, report)


def _filled(
    plan: TowerPlan, folder: Path | None, state: Mapping[str, Tensor] | None
) -> tuple[nn.Module, str]:
    """Return the model with the weights of a folder or of a state dict, and the parts that were left out."""
    tower: Any = plan.tower
    given = {"state_dict": dict(state)} if state is not None else {}
    with quiet():
        # Without the type, weights would come in the one that they were saved in.
        model, report = tower.from_pretrained(
            None if folder is None else str(folder),
            config=plan.config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else its error tells no name
            **given,
        )
    without = _require_complete(model, report)
    return model.eval(), without


def _image_parts(weights: list[Path]) -> list[str]:
    return _parts_of({name: None for path in weights for name in _names(path)})


def _parts_of(names: Mapping[str, object]) -> list[str]:
    """Return the prefixes in names of tensors that are those of an image tower by their last part, such as ``model.vision_tower.``."""
    prefixes = set()
    for name in names:
        parts = name.split(".")
        prefixes |= {
            ".".join(parts[: i + 1]) + "."
            for i, part in enumerate(parts[:-1])
            if "visi" in part or part == "visual"
        }
    return sorted(prefixes, key=len)


def _stripped(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


def _names(path: Path) -> list[str]:
    """Return the names of the tensors in a file."""
    if path.suffix != ".safetensors":
        return list(torch.load(path, map_location="meta", weights_only=True))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _tensors(weights: list[Path], part: str) -> dict[str, Tensor]:
    """Read the tensors whose names begin with `part`, without it; of safetensors nothing else is read."""
    state: dict[str, Tensor] = {}
    for path in weights:
        if path.suffix != ".safetensors":
            state |= _stripped(torch.load(path, map_location="cpu", weights_only=True), part)
            continue
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            state |= {
                name.removeprefix(part): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(part)
            }
    return state


def _require_complete(model: Any, report: Mapping[str, Any]) -> str:
    """Refuse random weights, which transformers would leave in place; take out what may be missing.

    Returns:
        Parts that were left out.
    """
    missing = sorted(report["missing_keys"])
    left_out = []
    for name in missing:
        part = name.partition(".")[0]
        if name.endswith("mask_token"):
            model.get_parameter(name).data.zero_()  # stands for hidden patches, of which there are none
        elif part == "pooler" and getattr(model, "pooler", None) is not None:
            left_out.append(part)
    if left_out:
        # Repositories of classifiers have none, and their features do not pass through it.
        model.pooler = None
    lacking = [name for name in missing if not name.endswith("mask_token") and not name.startswith("pooler.")]
    if lacking:
        own = sorted(report["unexpected_keys"])
        raise IncompleteWeightsError(f"it lacks {_first(lacking)}; it has {_first(own)}")
    for name, *shapes in sorted(report["mismatched_keys"], key=str):
        stored, expected = ([*map(int, shape)] for shape in shapes)
        raise ValueError(f"its {name} has shape {stored}, expected {expected}")
    beyond = [name for name in sorted(report["unexpected_keys"]) if _is_block_of(model, name)]
    if beyond:
        raise ValueError(f"it has {_first(beyond)}, which the model that its configuration describes has not")
    return ", ".join(dict.fromkeys(left_out))


def _is_block_of(model: nn.Module, name: str) -> bool:
    """Return whether a tensor belongs into one of the model's lists of blocks."""
    lists = [path for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and path]
    return any(name.startswith(f"{path}.") for path in lists)


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "no other tensor"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from logging and from drawing progress bars: what a user should know is said by us."""
    before = logging.root.manager.disable
    progress = transformers.utils.logging.is_progress_bar_enabled()
    logging.disable(max(before, logging.CRITICAL))
    transformers.utils.logging.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):  # code of repositories prints, and stdout may be JSON
            yield
    finally:
        logging.disable(before)
        if progress:
            transformers.utils.logging.enable_progress_bar()
