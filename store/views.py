"""Views of an image: named variants of a model's preprocessing, whose features a cache holds beside those of the image as it is.

The plain view is the model's own preprocessing and has no name on disk. Every other view is deterministic: the same image has the same
pixels in it on every machine, in every order of additions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from featcache.store.errors import CacheError, RequestError, UnknownNameError
from featcache.store.files import JsonObject, field, is_identical_json

PLAIN_VIEW = "plain"
"""Name of the view without changes, where views are listed; on disk it has none."""
FLIP, CORNER_CROP, SCALE, RANDOM_CROP = KINDS = ("flip", "corner-crop", "scale", "random-crop")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
RANDOM_AREA = (0.4, 1.0)
"""Share of the image's area that a random crop covers, uniform; that of the global crops of DINO (Caron et al. 2021)."""
RANDOM_ASPECT = (0.75, 1.0)
"""Shorter over longer side of a random crop, uniform."""
FORMS = ("flip", "crops5", "crop1", "scales:224+336", "random:4:seed0")
"""Forms of what `parse_views` reads, for errors and help."""
MAX_SIZE, MAX_RANDOM, MAX_SEED = 2**13, 64, 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
_NUMBERED = re.compile(r"(?P<word>crop|scale|random)(?P<number>[0-9]{1,10})(seed(?P<seed>[0-9]{1,10}))?")


@dataclass(frozen=True)
class View:
    """One view: its name, and how it is made."""

    name: str
    """Of letters, digits and ``_``, so that ``<view>-<array>`` names an array."""
    parameters: Mapping[str, Any]
    """Plain values that say how it is made; ``kind`` is one of `KINDS`. A kind that this version does not know can be read,
    but not extracted."""

    @property
    def kind(self) -> str:
        """The way in which it is made."""
        return str(self.parameters["kind"])

    @property
    def input_size(self) -> int | None:
        """Side of its input in pixels, where that is not the model's own."""
        size = self.parameters.get("input_size")
        return size if self.kind == SCALE and isinstance(size, int) else None

    @property
    def text(self) -> str:
        """The parameters for people, such as ``corner-crop, corner top-left``."""
        others = (
            f"{name.replace('_', ' ')} {value}" for name, value in self.parameters.items() if name != "kind"
        )
        return ", ".join((self.kind, *others))

    def to_dict(self) -> JsonObject:
        """Return the parameters as plain JSON values."""
        return dict(self.parameters)

    @classmethod
    def from_dict(cls, name: str, document: Any, where: str) -> Self:
        """Read a view back; `where` names the file in errors.

        Raises:
            CacheError: the name or the parameters are none of a view.
        """
        where = f"{where}: view {name!r}"
        if not _NAME.fullmatch(name) or name == PLAIN_VIEW:
            raise CacheError(
                f"{where}: a view's name has 1 to 32 letters, digits or _, and is not {PLAIN_VIEW!r}"
            )
        if not isinstance(document, dict):
            raise CacheError(f"{where}: its parameters must be an object")
        field(document, "kind", str, where)
        return cls(name, dict(document))

    def require_same(self, other: "View", where: str) -> None:
        """Refuse another view of the same name.

        Raises:
            CacheError: the parameters differ.
        """
        if not is_identical_json(self.to_dict(), other.to_dict()):
            raise CacheError(f"{where}: view {self.name!r} is {self.text}, and {other.text} elsewhere")


def named_view(name: str) -> View:
    """Return the view that a name such as ``crop1`` or ``random2seed0`` stands for.

    Raises:
        UnknownNameError: there is none.
        RequestError: its numbers are out of range.
    """
    if name == FLIP:
        return View(FLIP, {"kind": FLIP})
    match = _NUMBERED.fullmatch(name)
    word, number = (match["word"], int(match["number"])) if match else ("", 0)
    if match is None or (match["seed"] is not None) != (word == "random") or name != _canonical(match):
        raise UnknownNameError("view", name, FORMS)
    if word == "crop" and 1 <= number <= len(CORNERS):
        return View(name, {"kind": CORNER_CROP, "corner": CORNERS[number - 1]})
    if word == "scale" and 1 <= number <= MAX_SIZE:
        return View(name, {"kind": SCALE, "input_size": number})
    if word == "random" and 1 <= number <= MAX_RANDOM and int(match["seed"]) <= MAX_SEED:
        seed = int(match["seed"])
        return View(
            name,
            {
                "kind": RANDOM_CROP,
                "seed": seed,
                "number": number,
                "area": list(RANDOM_AREA),
                "aspect": list(RANDOM_ASPECT),
                "flip": 0.5,
            },
        )
    bounds = {"crop": f"1 to {len(CORNERS)}", "scale": f"1 to {MAX_SIZE} px"}
    raise RequestError(
        f"view {name!r} is out of range: {word} goes from "
        + bounds.get(word, f"1 to {MAX_RANDOM}, with a seed of at most {MAX_SEED}")
    )


def _canonical(match: "re.Match[str]") -> str:
    """Spell a name without leading zeros, so that one view has one name."""
    seed = "" if match["seed"] is None else f"seed{int(match['seed'])}"
    return f"{match['word']}{int(match['number'])}{seed}"


def view_names(text: str) -> tuple[str, ...]:
    """Return the names of the views that one item of a list such as ``flip,crops5,scales:224+336,random:4:seed0`` stands for.

    ``crops5`` starts with the plain view, which is the center crop. Names are not checked; see `named_view`.

    Raises:
        RequestError, UnknownNameError: the item has none of these forms.
    """
    word, *values = (part.strip() for part in text.split(":"))
    if word == "crops5" and not values:
        return (PLAIN_VIEW, *(f"crop{number}" for number in range(1, len(CORNERS) + 1)))
    if word == "scales" and len(values) == 1:
        sizes = [size.strip() for size in values[0].split("+")]
        if not all(size.isascii() and size.isdigit() for size in sizes):
            raise RequestError(f"scales take sides in pixels, such as scales:224+336, got {text!r}")
        return tuple(f"scale{int(size)}" for size in sizes)
    if word == "random" and 1 <= len(values) <= 2:
        count, seed = values[0], values[1] if len(values) == 2 else "seed0"
        digits = (count, seed.removeprefix("seed"))
        if not seed.startswith("seed") or not all(part.isascii() and part.isdigit() for part in digits):
            raise RequestError(f"random views take a number and a seed, such as random:4:seed0, got {text!r}")
        if not 1 <= int(count) <= MAX_RANDOM:
            raise RequestError(f"random views number 1 to {MAX_RANDOM}, got {text!r}")
        return tuple(f"random{number}seed{int(digits[1])}" for number in range(1, int(count) + 1))
    if values:
        raise UnknownNameError("view", text, FORMS)
    return (word,)


def as_views(given: str | Iterable[str | View]) -> tuple[View, ...]:
    """Return the views besides the plain one that a list names, each once, by name.

    Raises:
        UnknownNameError: there is no such view.
        RequestError: a number is out of range.
    """
    items = [part for part in given.split(",") if part.strip()] if isinstance(given, str) else list(given)
    found: dict[str, View] = {}
    for item in items:
        if isinstance(item, View):  # of a request that is copied
            found[item.name] = item
            continue
        for name in view_names(item):
            if name != PLAIN_VIEW:
                found[name] = named_view(name)
    return tuple(found[name] for name in sorted(found))


def choose_views(
    given: Sequence[str], held: Sequence[str], image_size: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """Return the views that a list means among those that a cache holds: the plain one first, then by name.

    Args:
        given: items as `view_names` takes them, or ``all``; the plain view if empty.
        held: names of the views besides the plain one.
        image_size: height and width of the model's own input in pixels; a scale of this size is the plain view.

    Raises:
        UnknownNameError: the cache does not hold one.
    """
    if "all" in given:
        return (PLAIN_VIEW, *sorted(held))
    named = {name for item in given for name in view_names(item)} or {PLAIN_VIEW}
    own = f"scale{image_size[0]}" if image_size and image_size[0] == image_size[1] else PLAIN_VIEW
    names = {PLAIN_VIEW if name == own else name for name in named}
    for name in sorted(names):
        if name != PLAIN_VIEW and name not in held:
            hint = "(the same `featcache extract` with --views adds others)"
            raise UnknownNameError("view", name, (PLAIN_VIEW, *sorted(held), "all"), hint)
    return tuple(sorted(names, key=lambda name: (name != PLAIN_VIEW, name)))
