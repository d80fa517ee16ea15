"""Templates of zero-shot prompts: shipped ones, or a text file with one a line. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.store.errors import RequestError, UnknownNameError

PLACE = "{}"
"""Stands for the name of a class."""
PHOTO, CLIP7 = "photo", "clip7"
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    PHOTO: ("a photo of a {}.",),
    CLIP7: (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}
"""Templates by name: the one that CLIP's paper begins with, and the seven that its authors chose for ImageNet."""
MOST_TEMPLATES, MOST_BYTES = 1000, 2**20


def as_templates(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Convert the name of shipped templates, or a text file with a template a line; templates themselves stay as they are.

    Raises:
        UnknownNameError: there are no shipped templates and no file of this name.
        RequestError: the file cannot be read, has no templates, or a line without ``{}``.
    """
    if not isinstance(given, str | Path):
        return _checked(tuple(given), "templates")
    if str(given) in TEMPLATES:
        return TEMPLATES[str(given)]
    path = Path(given)
    if not path.is_file():
        raise UnknownNameError("templates", str(given), TEMPLATES, "(or a text file with a template a line)")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RequestError(
                f"{path} is larger than {MOST_BYTES:,} bytes; give a text file with a template a line"
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path} cannot be read as text ({error}); give a text file with a template a line"
        ) from None
    return _checked(tuple(line.strip() for line in lines if line.strip()), str(path))


def _checked(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not 1 <= len(templates) <= MOST_TEMPLATES:
        raise RequestError(
            f"{where} must have from 1 to {MOST_TEMPLATES:,} templates, got {len(templates):,}"
        )
    for number, template in enumerate(templates, 1):
        if PLACE not in template:
            raise RequestError(
                f"{where}, template {number}: {template[:60]!r} has no {PLACE}, which stands for the name of a class"
            )
    return templates
