"""Vision transformers of Hugging Face transformers: ViT, DINOv2 and DINOv3, SigLIP, CLIP, BEiT, MAE, AIMv2, InternViT and their kin.

No list of classes says which are supported: blocks, patches, norm and pooling are found in a forward pass (`transformers_trace`), and the
self-test holds them to each other, as for every backbone.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import Backbone, Check, LoadedModel, TapPoint, missing_tap_error
from featcache.extraction.backbones.checkpoint import OPEN_CLIP_ORDER, Checkpoint, read_checkpoint
from featcache.extraction.backbones.hub import load_failure
from featcache.extraction.backbones.transformers_blocks import BlockForm, find_form, form_holds
from featcache.extraction.backbones.transformers_model import (
    LoadedTower,
    TowerPlan,
    empty_tower,
    load_tower,
    plan_tower,
    quiet,
)
from featcache.extraction.backbones.transformers_processor import LoadedProcessor, load_preprocessing
from featcache.extraction.backbones.transformers_repository import Repository
from featcache.extraction.backbones.transformers_trace import (
    Trace,
    UnsuitableModelError,
    check_layout,
    refused,
    require_images_alone,
    same,
    trace,
)
from featcache.extraction.backbones.weights import AS_STORED, file_source, state_digest
from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import (
    Preprocessing,
    Size,
    require_patch_multiple,
    size_text,
)
from featcache.store.errors import BackboneError, RequestError
from featcache.store.files import JsonObject
from featcache.store.hub import offline_if_unreachable
from featcache.store.spec import BackboneSpec
from featcache.store.text import reason

CLASS_TOKEN, AVERAGE, HEAD, NOTHING = "class token", "average", "head", "nothing"
"""Ways from the tokens of the last layer to the model's output; ``nothing`` where the output is the tokens themselves."""


BY_MODEL = "by the model, in every pass"
"""How a position embedding of another size is resized: by the code of transformers, whose filter differs from class to class."""


class Tower(nn.Module):
    """A model of transformers that gives one tensor; the tokens of its last layer pass through `final`, where they can be seen.

    Args:
        model: the model.
        post_norm: name of a norm that the model applies to its pooled class token alone. As in open_clip it is applied to all tokens
            here, so that the last layer has patch tokens of the same kind as the class token.
        pools: whether the output is the pooled one, if the model has one, and not the tokens of the last layer.
        interpolates: whether the model is asked to resize its position embedding; some do it without being asked.
    """

    def __init__(
        self,
        model: nn.Module,
        post_norm: str | None = None,
        *,
        pools: bool = True,
        interpolates: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.final = nn.Identity()
        self._post_norm = post_norm
        self._pools = pools
        parameters = inspect.signature(model.forward).parameters
        self._takes_noise = "noise" in parameters
        self._interpolates = interpolates and "interpolate_pos_encoding" in parameters

    def call(self, images: Tensor) -> Any:
        """Return the library's own output object for images ``[B, 3, S, S]``."""
        # Masked autoencoders shuffle patches by random noise even where they hide none; rising noise leaves them in order.
        options: dict[str, Any] = {"noise": self._rising(images)} if self._takes_noise else {}
        if self._interpolates:
            options["interpolate_pos_encoding"] = True
        return self.model(pixel_values=images, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's own output: projected, or pooled, or else the tokens of the last layer."""
        output = self.call(images)
        tokens: Tensor = self.final(self.final_tokens(output.last_hidden_state))
        return own_output(output) if self._pools else tokens

    def final_tokens(self, tokens: Tensor) -> Tensor:
        """Apply the norm that the model applies to the class token alone, if there is one."""
        return tokens if self._post_norm is None else self.model.get_submodule(self._post_norm)(tokens)

    def _rising(self, images: Tensor) -> Tensor:
        height, width = _patch(self.model.config)
        count = (images.shape[-2] // height) * (images.shape[-1] // width)
        return torch.arange(count, device=images.device, dtype=torch.float32).expand(len(images), -1)


def own_output(output: Any) -> Tensor:
    """Return what a model is used by: its projected output, its pooled one, or the tokens of its last layer."""
    for name in ("image_embeds", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    tokens: Tensor = output.last_hidden_state
    return tokens


@dataclass(frozen=True)
class Places:
    """Names of the places in a model that taps need; all are relative to `Tower.model`."""

    blocks: str
    form: BlockForm | None
    """None where the form of the blocks is not known."""
    norm: str | None
    """The norm from the last block to ``last_hidden_state``."""
    post_norm: str | None
    """See `Tower`."""
    pooling: str
    """One of the ways above."""
    head: str | None
    """The module that pools, for ``head``."""
    projection: str | None
    """The linear map without bias after pooling."""
    pooled_width: int
    """Channels of the pooled output."""
    unknown_pooling: bool = False
    """Whether the model has a pooled output that is left out, since no single module gives it."""


class TransformersViT(Backbone):
    """A vision transformer of Hugging Face transformers."""

    def __init__(self, loaded: LoadedModel, places: Places) -> None:
        super().__init__(loaded)
        self._places = places

    @property
    def tower(self) -> Tower:
        """The wrapper around the library's model."""
        tower = self.module
        assert isinstance(tower, Tower)
        return tower

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Return a block or a part of it, by the names that `find_form` knows."""
        form = self._places.form
        module = self._block(block)
        if tap == "block":
            return TapPoint(module, self.spec.width)
        if form is None:
            kind = f"{type(module).__name__} is of no form that is known"
            raise missing_tap_error(self.spec.architecture, tap, ("block",), kind)
        return form.point(module, tap, self.spec.width)

    @property
    def final_norm(self) -> nn.Module:
        """The Identity that the tokens of the last layer pass through."""
        return self.tower.final

    @property
    def embedding_point(self) -> TapPoint | None:
        """The output of the module that pools, or the input of the projection."""
        places, width = self._places, self.spec.width
        if places.pooling != HEAD:
            return None
        if places.projection is not None:
            return TapPoint(self.tower.model.get_submodule(places.projection), width, "input")
        assert places.head is not None
        return TapPoint(self.tower.model.get_submodule(places.head), places.pooled_width)

    @property
    def projection(self) -> Tensor | None:
        """The weight of the linear map after pooling, transposed."""
        if self._places.projection is None:
            return None
        weight: Tensor = self.tower.model.get_submodule(self._places.projection).weight  # type: ignore[assignment]
        return weight.detach().T

    def final_tokens(self, tokens: Tensor) -> Tensor:
        """Apply the model's norm to what the last block gives."""
        norm = self._places.norm
        return self.tower.final_tokens(
            tokens if norm is None else self.tower.model.get_submodule(norm)(tokens)
        )

    def output_from_final(self, tokens: Tensor) -> Tensor:
        """Pool and project, as the model does."""
        places = self._places
        if places.pooling == NOTHING:
            return tokens
        if places.pooling == CLASS_TOKEN:
            pooled = tokens[:, 0]
        elif places.pooling == AVERAGE:
            pooled = tokens[:, self.layout.num_prefix_tokens :].mean(1)
        else:
            assert places.head is not None
            pooled = self.tower.model.get_submodule(places.head)(tokens)
        output: Tensor = pooled if self.projection is None else pooled @ self.projection
        return output

    def block_checks(self, block: int, entered: Tensor, taps: Mapping[str, Tensor]) -> list[Check]:
        """Return the equations of pre-norm blocks."""
        if self._places.form is None:
            return []
        return self._places.form.equations(self._block(block)).checks(entered, taps)

    def _block(self, index: int) -> nn.Module:
        return self.tower.model.get_submodule(f"{self._places.blocks}.{index}")


def load_transformers(
    name: ModelName, weights: Path | None, key: str | None, changes: Preprocessing, trust_remote_code: bool
) -> TransformersViT:
    """Load a vision transformer of Hugging Face transformers.

    Args:
        name: the resolved name, of family ``transformers``.
        weights: a folder with a repository's files, or a file with the weights of the one that is named.
        key: name of one of several sets of weights in that file.
        changes: changes to the settings of the repository's image processor.
        trust_remote_code: whether code of the repository may run, where transformers has none for the model.

    Raises:
        RequestError: the repository needs code of its own, or the changes do not fit its image processor.
        BackboneError: the repository or its weights cannot be had, or the model is of a kind that is not supported.
    """
    folder = weights if weights is not None and weights.is_dir() else None
    file = weights if folder is None else None
    try:
        with offline_if_unreachable(), quiet():
            repository = Repository.open(name, folder)
            plan = plan_tower(repository, trust_remote_code)
            _require_suitable(plan)
            processor = load_preprocessing(repository.folder, plan.uses_code, changes, name.explicit)
            if processor.size != processor.own_size:
                require_patch_multiple(name.explicit, processor.size, _patch(plan.config))
            checkpoint = read_checkpoint(file, OPEN_CLIP_ORDER, key) if file is not None else None
            loaded = load_tower(repository, plan, None if checkpoint is None else checkpoint.state)
    except UnsuitableModelError as error:
        raise refused(name.explicit, error) from error
    except (BackboneError, RequestError):
        raise
    except ImportError as error:  # of the repository's code
        raise BackboneError(f"{name.explicit} cannot be loaded ({reason(error)})") from error
    except Exception as error:  # transformers, torch and the hub client raise many kinds
        if weights is None and name.folder is not None:
            raise BackboneError(f"{name.explicit} cannot be loaded ({reason(error)})") from error
        raise load_failure(name, weights, error, name.repository) from error
    source = _source(repository, plan, loaded, file, checkpoint)
    try:
        with quiet():  # code of before warns once of what has another name now
            return _backbone(plan, loaded, processor, source)
    except UnsuitableModelError as error:
        raise refused(name.explicit, error) from error


def _require_suitable(plan: TowerPlan) -> None:
    """Refuse by its form what can be refused before gigabytes are fetched.

    Raises:
        UnsuitableModelError: the model takes something else than images, or has no list of blocks that see the same tokens.
    """
    model = empty_tower(plan)
    if model is None:
        return
    require_images_alone(model)
    height, width = _stored_size(plan.config) or (224, 224)
    images = torch.empty(1, 3, height, width, device="meta")
    try:
        trace(model, Tower(model).call, images)
    except UnsuitableModelError:
        raise
    except Exception:  # some models read values, which are not there yet
        return


@torch.no_grad()
def _backbone(
    plan: TowerPlan, loaded: LoadedTower, processor: LoadedProcessor, source: JsonObject
) -> TransformersViT:
    """Find the places of the taps in a model with its weights."""
    model, size = loaded.module, processor.size
    require_images_alone(model)
    stored = _stored_size(plan.config)
    # A size that is asked for may be another than that of the weights; that of the processor has to fit without being asked for.
    asked = size != processor.own_size
    interpolates = asked and stored != size
    plain = Tower(model, interpolates=interpolates)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    try:
        found = trace(model, plain.call, images)
    except UnsuitableModelError:
        raise
    except Exception as error:  # whatever a model may raise
        hint = (
            ""
            if stored is None or asked
            else f"; --input-size {size_text(stored, '')} is the size of its weights"
        )
        raise UnsuitableModelError(
            f"does not run on images of {size[0]} x {size[1]} pixels, which its preprocessing gives ({reason(error)}){hint}"
        ) from error
    check_layout(model, plain.call, found, size)
    places = _places(found)
    as_stored = stored in (None, size) or not _has_positions(model)
    spec = BackboneSpec(
        architecture=f"transformers:{plan.definition}",
        weights_digest=state_digest(model),
        num_layers=len(found.blocks.members),
        width=found.width,
        input_size=size[1],
        preprocessing={**processor.values, "position_embedding": AS_STORED if as_stored else BY_MODEL},
    )
    notes = tuple(_notes(plan, loaded, processor, found, places))
    tower = Tower(model, places.post_norm, pools=not places.unknown_pooling, interpolates=interpolates).eval()
    return TransformersViT(LoadedModel(spec, tower, processor.transform, found.layout, source, notes), places)


def _stored_size(config: Any) -> Size | None:
    """Return height and width of the images that the weights are for; None where the configuration does not tell."""
    size = getattr(config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        return None
    return int(sides[0]), int(sides[1])


def _patch(config: Any) -> Size:
    """Return height and width of a patch; 1 where the configuration does not tell."""
    patch = getattr(config, "patch_size", 1)
    sides = (patch, patch) if isinstance(patch, int) else patch
    return int(sides[0]), int(sides[-1])


def _places(found: Trace) -> Places:
    """Find norm, pooling and projection by the tensors that pass through them.

    Raises:
        UnsuitableModelError: the tokens of the last layer are not among what the model gives.
    """
    last = found.blocks.left
    tokens = getattr(found.output, "last_hidden_state", None)
    assert last is not None
    if not isinstance(tokens, Tensor) or tokens.shape != last.shape:
        raise UnsuitableModelError("does not give the tokens of its last layer (last_hidden_state)")
    norm = None
    if not same(last, tokens):
        norm = next(
            (call.name for call in found.calls if same(call.entered, last) and same(call.left, tokens)), None
        )
        if norm is None:
            raise UnsuitableModelError("has more than a norm between its last block and last_hidden_state")
    form = find_form(found.blocks.members[-1], found.width)
    if form is not None and not form_holds(form, found.blocks, found.width):
        form = None
    output = own_output(found.output)
    if output is tokens:
        return Places(found.blocks.name, form, norm, None, NOTHING, None, None, found.width)
    post_norm = next(
        (
            call
            for call in found.calls
            # Where the tokens went through a norm already, they are those of the last layer.
            if norm is None
            and "norm" in type(call.module).__name__.lower()
            and same(call.entered, tokens[:, 0])
        ),
        None,
    )
    if post_norm is not None:
        tokens = post_norm.module(tokens)
    projection, pooled = None, output
    for call in found.calls:
        linear = call.module
        if (
            isinstance(linear, nn.Linear)
            and linear.bias is None
            and linear.in_features == found.width
            and same(call.left, output)
        ):
            projection, pooled = call.name, call.entered
    head = None
    if found.layout.has_class_token and same(pooled, tokens[:, 0]):
        pooling = CLASS_TOKEN
    elif same(pooled, tokens[:, found.layout.num_prefix_tokens :].mean(1)):
        pooling = AVERAGE
    else:
        pooling = HEAD
        head = next(
            (
                call.name
                for call in found.calls
                if call.name and same(call.entered, tokens) and same(call.left, pooled)
            ),
            None,
        )
        if head is None:
            pooling, projection, pooled = NOTHING, None, tokens
    return Places(
        blocks=found.blocks.name,
        form=form,
        norm=norm,
        post_norm=None if post_norm is None else post_norm.name,
        pooling=pooling,
        head=head,
        projection=projection,
        pooled_width=pooled.shape[-1],
        unknown_pooling=pooling == NOTHING,
    )


def _notes(
    plan: TowerPlan, loaded: LoadedTower, processor: LoadedProcessor, found: Trace, places: Places
) -> list[str]:
    """Return what a user should know of the choices made while a repository was loaded."""
    notes = []
    if plan.uses_code:
        notes.append(f"{type(loaded.module).__name__} is code of the repository, which runs with your rights")
    if loaded.without:
        notes.append(f"its weights have no {loaded.without}, which is left out; no feature passes through it")
    if processor.note:
        notes.append(processor.note)
    if places.unknown_pooling:
        notes.append(
            "its pooled output is left out, since no single module gives it; its tokens are all there"
        )
    if places.form is None:
        block = type(found.blocks.members[0]).__name__
        notes.append(f"the form of its blocks ({block}) is not known, so they have one tap, --tap block")
    return notes


def _has_positions(model: nn.Module) -> bool:
    return any("position_embedding" in name or "pos_embed" in name for name, _ in model.named_parameters())


def _source(
    repository: Repository,
    plan: TowerPlan,
    loaded: LoadedTower,
    file: Path | None,
    checkpoint: Checkpoint | None,
) -> JsonObject:
    """Return the provenance of weights and code."""
    if file is None:
        source = repository.source(loaded.weights)
    else:
        source = file_source(file, {} if checkpoint is None else checkpoint.choice)
        if repository.revision is not None:
            source |= {"repository": repository.name.repository, "revision": repository.revision}
    return source | ({"remote_code": True} if plan.uses_code else {})
