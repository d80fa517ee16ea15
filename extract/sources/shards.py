"""Tar files of a dataset: a folder laid out as on the Hub, a pattern, or addresses."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePath

from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.split_names import ChosenSplits, choose_splits, role_of
from featcache.extraction.sources.text_file import read_lines
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded

CLASSES_FILE, COUNT_FILE = "classnames.txt", "nshards.txt"
MAX_SHARDS = 10**6
_RANGE = re.compile(r"\{([^{}]*)\}")
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


def expand_pattern(pattern: str) -> list[str]:
    """Expand a pattern: ``{000..010}`` (with the zeros of its first number) and ``{a,b}``.

    Raises:
        RequestError: a range is not valid, or there are too many shards.
    """
    pieces = _RANGE.split(pattern)
    choices = [
        [piece] if number % 2 == 0 else _choices(piece, pattern) for number, piece in enumerate(pieces)
    ]
    if math.prod(map(len, choices)) > MAX_SHARDS:
        raise RequestError(f"{pattern} stands for more than {MAX_SHARDS:,} shards")
    return ["".join(parts) for parts in product(*choices)]


def _choices(text: str, pattern: str) -> list[str]:
    first, dots, last = text.partition("..")
    if not dots:
        return text.split(",")
    numbers = [re.fullmatch("[0-9]{1,12}", digits) for digits in (first, last)]
    if not all(numbers) or not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise RequestError(f"{{{text}}} in {pattern} is no range; write such as {{000..010}}")
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def matching_files(pattern: str) -> list[Path]:
    """Return the files that a pattern means, in its order; ``*`` and ``?`` in the order of their numbers.

    Raises:
        DatasetError: some are not there (the first ten and the count).
    """
    paths: list[Path] = []
    missing: list[str] = []
    for text in expand_pattern(str(expanded(pattern))):
        path = Path(text)
        if set("*?[") & set(text):
            matches = sorted(path.parent.glob(path.name), key=natural)
            paths += matches
            missing += [] if matches else [text]
        else:
            paths.append(path)
            missing += [] if path.is_file() else [text]
    refuse_missing(missing, "shards", pattern)
    return paths


def refuse_missing(missing: Sequence[str], noun: str, where: str) -> None:
    """Refuse what is not all there.

    Raises:
        DatasetError: the first ten and the count.
    """
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DatasetError(f"{where}: {len(missing)} {noun} do not exist: {', '.join(missing[:10])}{more}")


def is_shard_folder(folder: Path) -> bool:
    """Return whether a folder has splits with tar files below it."""
    return any(split_folders(folder))


def split_folders(folder: Path) -> Iterator[str]:
    """Yield the names of the folders that hold shards."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith(".") and entry.is_dir() and next(entry.glob("*.tar"), None):
                yield entry.name


def folder_shards(folder: Path, options: DatasetOptions) -> tuple[dict[str, list[Path]], ChosenSplits]:
    """Return the shards of the splits of a folder that are read, in order, and the choice of splits.

    Raises:
        DatasetError: there are no shards, their names are ambiguous, or a shard that nshards.txt counts is missing.
    """
    there = list(split_folders(folder))
    if not there:
        raise DatasetError(f"{folder} has no folder train or test with tar files")
    chosen = choose_splits(there, options, str(folder))
    return {split: _numbered(folder / name) for split, name in chosen.names.items()}, chosen


def splits_by_name(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Group shards by the split in their names: ``photos-train-000.tar`` and ``photos-test-000.tar``.

    Returns:
        Shards by split, as the names spell it; empty unless the names have at least two splits.

    Raises:
        DatasetError: some shards name a split and others do not.
    """
    splits: dict[str, list[Path]] = {}
    for path in paths:
        words = [word for word in re.split(r"[^A-Za-z]+", path.stem) if role_of(word)]
        splits.setdefault(words[0] if len(words) == 1 else "", []).append(path)
    named = [split for split in splits if split]
    if len({role_of(split) for split in named}) < 2:
        return {}
    if "" in splits:
        raise DatasetError(
            f"shards such as {splits[named[0]][0].name} name a split, {splits[''][0].name} names none; put each split into a "
            "folder of its own, or name them as in wds:PATTERN?test=PATTERN"
        )
    return splits


def uncounted_shards(folder: Path, read: Sequence[Path]) -> list[Path]:
    """Return shards in a split's folder beyond the number in nshards.txt; they are not read."""
    return sorted({*folder.glob("*.tar")} - {*read}, key=natural)


def packed_shards(folder: Path) -> list[Path]:
    """Return compressed shards of a folder; they are not read, since members are read at their offset."""
    return sorted(path for path in folder.iterdir() if _PACKED.search(path.name)) if folder.is_dir() else []


def shard_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the shards of one split, for ids: without folders, unless two shards have the same name.

    Then all are named by their paths from the common folder of the split.
    """
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    return [
        PurePath(os.path.relpath(os.path.abspath(path), common)).with_suffix("").as_posix() for path in paths
    ]


def _numbered(folder: Path) -> list[Path]:
    """Return shards in the order of their numbers; as many as nshards.txt says, if it is there."""
    shards = sorted(folder.glob("*.tar"), key=natural)
    counted = folder / COUNT_FILE
    if not counted.is_file():
        return shards
    count = shard_count("\n".join(read_lines(counted)), counted)
    numbers = {int(path.stem): path for path in shards if path.stem.isdigit()}
    refuse_missing(
        [f"{number}.tar" for number in range(count) if number not in numbers], "shards", str(folder)
    )
    return [numbers[number] for number in range(count)]


def shard_count(text: str, where: object) -> int:
    """Return the number of shards in nshards.txt.

    Raises:
        DatasetError: it is no number.
    """
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or not 0 < int(text) <= MAX_SHARDS:
        raise DatasetError(f"{where} must be a number of shards, got {text.strip()[:40]!r}")
    return int(text)


def class_names(folder: Path) -> list[str]:
    """Return the names in classnames.txt, line number = label; none if it is not there. It may lack a line."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return []
    return read_lines(path)


def natural(path: PurePath) -> tuple[object, ...]:
    """Sort key by which ``2.tar`` comes before ``10.tar``."""
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if part.isdigit() else part for part in parts)
