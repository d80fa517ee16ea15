"""A contact sheet: samples of a dataset as one image, so that people see what they are about to extract."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.extraction.sources.base import Source
from featcache.extraction.sources.samples import labels_of
from featcache.store.errors import DatasetError
from featcache.store.targets import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE, GAP, CAPTION = 112, 6, 18
COLUMNS = 8
MAX_ROWS = 16
BACKGROUND, INK, BROKEN = (255, 255, 255), (30, 30, 30), (200, 60, 60)


@dataclass(frozen=True)
class Strip:
    """One row of the sheet."""

    caption: str
    spots: tuple[tuple[str, int], ...]
    """Split and row of every image."""


def contact_sheet(source: Source) -> "tuple[Image, list[str]]":
    """Draw up to `MAX_ROWS` classes of each split, or ranges of values, with up to eight samples each.

    Returns:
        The sheet, and a message for every image that does not decode.
    """
    from PIL import Image, ImageDraw

    strips = list(_strips(source))
    height = len(strips) * (SIDE + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, height), BACKGROUND)
    draw, problems = ImageDraw.Draw(sheet), []
    for number, strip in enumerate(strips):
        top = GAP + number * (SIDE + CAPTION + GAP)
        _write(draw, strip.caption, top)
        for column, (split, row) in enumerate(strip.spots):
            left = GAP + column * (SIDE + GAP)
            try:
                sheet.paste(_thumbnail(source, split, row), (left, top + CAPTION))
            except DatasetError as error:
                problems.append(str(error))
                corner = (left + SIDE - 1, top + CAPTION + SIDE - 1)
                draw.rectangle([(left, top + CAPTION), corner], outline=BROKEN, width=3)
    return sheet, problems


def _strips(source: Source) -> Iterator[Strip]:
    targets = source.targets
    for split, samples in source.splits.items():
        if not targets.labeled:
            spots = _spread(len(samples), COLUMNS * MAX_ROWS).tolist()
            for first in range(0, len(spots), COLUMNS):
                caption = f"{split} ({len(samples)})" if not first else ""
                yield Strip(caption, tuple((split, row) for row in spots[first : first + COLUMNS]))
            continue
        labels = labels_of(samples)
        if targets.type == REGRESSION:
            yield from _ranges(source, split, labels)
            continue
        counts = targets.counts(labels)
        present = np.flatnonzero(counts)
        for label in present[_spread(len(present), MAX_ROWS)].tolist():
            members = np.flatnonzero(labels[:, label] if targets.type == MULTI_LABEL else labels == label)
            caption = f"{split}: {targets.names[label]} ({counts[label]})"
            yield Strip(caption, tuple((split, int(row)) for row in members[_spread(len(members), COLUMNS)]))


def _ranges(source: Source, split: str, labels: "np.typing.NDArray[np.float32]") -> Iterator[Strip]:
    """One strip for each quantity, from its lowest to its highest value."""
    for index in range(min(MAX_ROWS, labels.shape[1])):
        order = np.argsort(labels[:, index], kind="stable")
        chosen = order[_spread(len(order), COLUMNS)]
        unit = f" {source.targets.units[index]}" if source.targets.units else ""
        values = ", ".join(f"{value:.3g}" for value in labels[chosen, index])
        name = source.targets.names[index]
        yield Strip(f"{split}: {name}: {values}{unit}", tuple((split, int(row)) for row in chosen))


def _spread(count: int, most: int) -> "np.typing.NDArray[np.int64]":
    """At most so many indices from all over."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _thumbnail(source: Source, split: str, row: int) -> "Image":
    from PIL import Image, ImageOps

    from featcache.extraction.decoding.rgb import rgb_image, turned_upright
    from featcache.extraction.sources.channel_image import ChannelImage

    image = turned_upright(rgb_image(source, split, row))  # as an extraction takes it
    if isinstance(image, ChannelImage):
        image = image.as_rgb()
    way = Image.Resampling.NEAREST if max(image.size) * 2 <= SIDE else Image.Resampling.BICUBIC
    return ImageOps.pad(image, (SIDE, SIDE), way, BACKGROUND)


def _write(draw: "ImageDraw", text: str, top: int) -> None:
    from PIL import ImageFont

    draw.text((GAP, top + 2), text, INK, ImageFont.load_default(12))
