"""Views of an image, made from one decoded image: mirrored, cropped at a corner, at another input size, cropped at random.

What is random is drawn from the seed and the content digest, so that an image has the same crops in every dataset, order and process.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image
from torch import Tensor
from torchvision import transforms

from featcache.extraction.decoding.preprocessing import EightBitTransform, Pixels, in_two_parts, with_resize
from featcache.store.errors import RequestError
from featcache.store.inventory import Inventory
from featcache.store.token_groups import split_view
from featcache.store.views import CORNER_CROP, FLIP, KINDS, RANDOM_CROP, View

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone

Transform = EightBitTransform | Callable[[Image], Tensor]
"""Preprocessing in two parts, or a function from an RGB image to ``[3, S, S]`` float32."""


@dataclass(frozen=True)
class ViewInput:
    """How one view of every image is prepared."""

    name: str
    """Empty for the plain view."""
    view: View | None
    """None for the plain view."""
    transform: Transform
    size: tuple[int, int]
    """Height and width of a prepared image, pixels."""


def view_inputs(
    backbone: "Backbone", resize: str, inventory: Inventory
) -> Mapping[str, tuple[ViewInput, ...]]:
    """Return the views that the arrays of every split need, by split.

    Args:
        backbone: tells the preprocessing, at every input size.
        resize: version of resizing.
        inventory: what is going to be written.
    """

    def of(name: str) -> ViewInput:
        view = inventory.views[name] if name else None
        sized = backbone if view is None or view.input_size is None else backbone.at_size(view.input_size)
        return ViewInput(name, view, with_resize(sized.transform, resize), sized.spec.image_size)

    made: dict[str, ViewInput] = {}
    splits = {}
    for split in inventory.splits.values():
        names = sorted({split_view(array.name)[0] for array in split.arrays.values() if array.layers})
        for name in names:
            made.setdefault(name, of(name))
        splits[split.name] = tuple(made[name] for name in names)
    return splits


def check_views(views: Sequence[View], backbone: "Backbone") -> None:
    """Refuse views that the preprocessing of a backbone has no form of.

    Raises:
        RequestError: it has no center crop to move, or does more than resizing and cropping.
    """
    for view in views:
        if view.kind not in KINDS:
            raise RequestError(
                f"view {view.name!r} is {view.text}, which this featcache cannot extract; upgrade it"
            )
        if view.kind not in (CORNER_CROP, RANDOM_CROP):
            continue
        parts = in_two_parts(backbone.transform)
        steps = () if parts is None else parts.steps
        crop, resize = _step(steps, transforms.CenterCrop), _step(steps, transforms.Resize)
        if resize is None or (crop is None and view.kind == CORNER_CROP):
            raise RequestError(
                f"--views {view.name}: the preprocessing of {backbone.spec.architecture} is not a resize and a center crop, "
                "which such a view takes the place of; leave it out"
            )
        if view.kind == CORNER_CROP and (fixed := _fixed_size(resize)) is not None and fixed <= _side(crop):
            raise RequestError(
                f"--views {view.name}: {backbone.spec.architecture} resizes to exactly {fixed} x {fixed} px, of which nothing is "
                "cropped, so a corner crop would be the plain view; leave it out"
            )


def view_notes(views: Sequence[View], backbone: "Backbone") -> Iterator[str]:
    """Yield a note on every view that equals the plain one, of all images or of square ones."""
    spec = backbone.spec
    for view in views:
        if (view.input_size, view.input_size) == spec.image_size:
            yield f"view {view.name} is the plain one, since {spec.architecture} takes {view.input_size} px; it is not stored twice"
    names = [view.name for view in views if view.kind == CORNER_CROP]
    parts = in_two_parts(backbone.transform) if names else None
    crop, resize = (
        _step(parts.steps if parts else (), kind) for kind in (transforms.CenterCrop, transforms.Resize)
    )
    if crop is not None and resize is not None and _side(resize) <= _side(crop):
        yield (
            f"{spec.architecture} crops nothing of square images, whose views {', '.join(names)} are equal to the plain one"
        )


def prepare_views(
    inputs: Sequence[ViewInput], image: Image, pixels: npt.NDArray[np.uint8], digest: bytes
) -> Iterator[Tensor]:
    """Yield every view ``[3, H, W]`` of one decoded image, uint8 or float32 as its transform gives it.

    Args:
        inputs: the views.
        image: the RGB image.
        pixels: its pixels ``[H, W, 3]``, writable.
        digest: its content digest, from which random crops are drawn.
    """
    made: dict[tuple[tuple[int, int], str], Any] = {}
    for one in inputs:
        transform, view = one.transform, one.view
        if view is not None and view.kind == RANDOM_CROP and isinstance(transform, EightBitTransform):
            yield _random_crop(transform, one.size, view, image, pixels, digest)
        elif view is not None and view.kind == CORNER_CROP and isinstance(transform, EightBitTransform):
            place = _crop_place(transform)
            resized = made.get((one.size, "resized"))
            if resized is None:
                resized = transform.apply(transform.begin(image, pixels), transform.steps[:place])
                made[one.size, "resized"] = resized
            cropped = _corner(resized, view.parameters["corner"], one.size)
            yield transform.finish(transform.apply(cropped, transform.steps[place + 1 :]))
        else:
            plain = made.get((one.size, "plain"))
            if plain is None:
                plain = made[one.size, "plain"] = _plain(transform, image, pixels)
            yield plain.flip(-1) if view is not None and view.kind == FLIP else plain


def _plain(transform: Transform, image: Image, pixels: npt.NDArray[np.uint8]) -> Tensor:
    if isinstance(transform, EightBitTransform):
        return transform.prepare(image, pixels)
    return transform(image)


def random_box(view: View, width: int, height: int, digest: bytes) -> tuple[tuple[int, int, int, int], bool]:
    """Draw a crop of an image of `width` x `height` pixels.

    Only sums, products and square roots of float64 are used, which are rounded alike on every machine.

    Returns:
        Left, top, right and bottom in pixels, and whether it is mirrored.
    """
    values = view.parameters
    seed = f"{values['seed']} {values['number']} ".encode() + digest
    words = np.frombuffer(hashlib.sha512(seed).digest()[:48], ">u8")
    area_u, aspect_u, tall_u, left_u, top_u, flip_u = (
        (words >> 11) * 2.0**-53
    ).tolist()  # from 0 to 1, exclusive
    area = width * height * _between(values["area"], area_u)
    aspect = _between(values["aspect"], aspect_u)
    short, long = math.sqrt(area * aspect), math.sqrt(area / aspect)
    wide, high = (short, long) if tall_u < 0.5 else (long, short)
    box_width = max(1, min(width, round(wide)))
    box_height = max(1, min(height, round(high)))
    left = int(left_u * (width - box_width + 1))
    top = int(top_u * (height - box_height + 1))
    return (left, top, left + box_width, top + box_height), flip_u < values["flip"]


def _between(bounds: Sequence[float], part: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * part


def _random_crop(
    transform: EightBitTransform,
    size: tuple[int, int],
    view: View,
    image: Image,
    pixels: npt.NDArray[np.uint8],
    digest: bytes,
) -> Tensor:
    box, mirrored = random_box(view, image.width, image.height, digest)
    resize = _step(transform.steps, transforms.Resize)
    whole = transforms.Resize(size, resize.interpolation, antialias=True)
    crop = (transforms.Resize, transforms.CenterCrop)
    others = [step for step in transform.steps if not isinstance(step, crop)]
    cropped = _cropped(transform.begin(image, pixels), box)
    tensor = transform.finish(transform.apply(cropped, [whole, *others]))
    return tensor.flip(-1) if mirrored else tensor


def _corner(values: Pixels, corner: str, size: tuple[int, int]) -> Pixels:
    width, height = values.size if isinstance(values, Image) else (values.shape[2], values.shape[1])
    left = 0 if corner.endswith("left") else width - size[1]
    top = 0 if corner.startswith("top") else height - size[0]
    return _cropped(values, (left, top, left + size[1], top + size[0]))


def _cropped(values: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    if isinstance(values, Image):
        return values.crop(box)
    left, top, right, bottom = box
    return values[:, top:bottom, left:right]


def _crop_place(transform: EightBitTransform) -> int:
    return next(
        index for index, step in enumerate(transform.steps) if isinstance(step, transforms.CenterCrop)
    )


def _step(steps: Sequence[Any], kind: type) -> Any:
    return next((step for step in steps if isinstance(step, kind)), None)


def _side(step: Any) -> int:
    return int(step.size) if isinstance(step.size, int) else int(min(step.size))


def _fixed_size(resize: Any) -> int | None:
    """Return the side to which both sides are resized; None where the shorter side alone is given."""
    return int(min(resize.size)) if not isinstance(resize.size, int) and len(resize.size) == 2 else None
