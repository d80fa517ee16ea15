"""Which tar files a dataset consists of: a folder laid out as on the Hub, a pattern, or addresses."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePath

from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded

CLASSES_FILE, COUNT_FILE = "classnames.txt", "nshards.txt"
MAX_SHARDS = 10**6
_RANGE = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Spell a pattern out: ``{000..010}`` (with the zeros of its first number) and ``{a,b}``.

    Raises:
        RequestError: a range is none.
    """
    pieces = _RANGE.split(pattern)
    choices = [
        [piece] if number % 2 == 0 else _choices(piece, pattern) for number, piece in enumerate(pieces)
    ]
    return ["".join(parts) for parts in product(*choices)]


def _choices(text: str, pattern: str) -> list[str]:
    first, dots, last = text.partition("..")
    if not dots:
        return text.split(",")
    if not (first.isdigit() and last.isdigit()) or not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise RequestError(f"{{{text}}} in {pattern} is no range; write such as {{000..010}}")
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern means, in its order; ``*`` and ``?`` in the order of their numbers.

    Raises:
        DatasetError: some are not there (the first ten and the count).
    """
    paths: list[Path] = []
    missing: list[str] = []
    for text in expand(str(expanded(pattern))):
        path = Path(text)
        if set("*?[") & set(text):
            found = sorted(path.parent.glob(path.name), key=natural)
            paths += found
            missing += [] if found else [text]
        else:
            paths.append(path)
            missing += [] if path.is_file() else [text]
    refuse_missing(missing, "shards", pattern)
    return paths


def refuse_missing(missing: Sequence[str], what: str, where: str) -> None:
    """Refuse what is not all there.

    Raises:
        DatasetError: the first ten and the count.
    """
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DatasetError(f"{where}: {len(missing)} {what} do not exist: {', '.join(missing[:10])}{more}")


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder has splits with tar files below it."""
    return any(split_folders(folder))


def split_folders(folder: Path) -> Iterator[str]:
    """Names of the folders that hold shards."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith(".") and entry.is_dir() and next(entry.glob("*.tar"), None):
                yield entry.name


def folder_shards(folder: Path, wanted: Sequence[str]) -> tuple[dict[str, list[Path]], list[str]]:
    """Shards of the wanted splits that a folder has, in order, and the names of those that were not wanted.

    Raises:
        DatasetError: there is none, or a shard that nshards.txt counts is missing.
    """
    there = list(split_folders(folder))
    if not there:
        raise DatasetError(f"{folder} has no folder train or test with tar files")
    splits = {split: _numbered(folder / split) for split in wanted if split in there}
    return splits, [split for split in there if split not in wanted]


def _numbered(folder: Path) -> list[Path]:
    """Shards in the order of their numbers; as many as nshards.txt says, if it is there."""
    found = sorted(folder.glob("*.tar"), key=natural)
    counted = folder / COUNT_FILE
    if not counted.is_file():
        return found
    count = shard_count(counted.read_text(), counted)
    numbers = {int(path.stem): path for path in found if path.stem.isdigit()}
    refuse_missing(
        [f"{number}.tar" for number in range(count) if number not in numbers], "shards", str(folder)
    )
    return [numbers[number] for number in range(count)]


def shard_count(text: str, where: object) -> int:
    """What nshards.txt says.

    Raises:
        DatasetError: it is no number.
    """
    if not text.strip().isdigit() or not 0 < int(text) <= MAX_SHARDS:
        raise DatasetError(f"{where} must be a number of shards, got {text.strip()[:40]!r}")
    return int(text)


def class_names(folder: Path) -> list[str]:
    """Names in classnames.txt, line number = label; none if it is not there. It may lack a line."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


def natural(path: PurePath) -> tuple[object, ...]:
    """Sort key by which ``2.tar`` comes before ``10.tar``."""
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if part.isdigit() else part for part in parts)
