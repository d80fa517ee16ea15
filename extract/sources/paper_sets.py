"""Datasets by alias: a local copy, what the Hub's client has already, or a download."""

import re
from collections.abc import Sequence
from pathlib import Path

from featcache.extraction.sources.aliases import Alias
from featcache.extraction.sources.collection import Collection
from featcache.extraction.sources.data_folders import data_folder
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.hub_files import Snapshot, cached_snapshot, fetch_snapshot
from featcache.extraction.sources.shards import (
    CLASSES_FILE,
    COUNT_FILE,
    class_names,
    folder_shards,
    is_shard_folder,
    natural,
)
from featcache.extraction.sources.split_names import TEST, TRAIN
from featcache.extraction.sources.webdataset import WebDataset
from featcache.store.errors import DatasetError
from featcache.store.progress import Reporter

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_alias(alias: Alias, options: DatasetOptions, reporter: Reporter) -> Collection:
    """Find or fetch a dataset and index its shards.

    Raises:
        DatasetError: there is no copy where one was named, it cannot be fetched, or it is damaged.
    """
    snapshot = (
        _find_local(alias, options) or _find_downloaded(alias, options) or _fetch(alias, options, reporter)
    )
    splits, chosen = folder_shards(snapshot.folder, options)
    collection = WebDataset(
        alias.name,
        splits,
        class_names(snapshot.folder),
        target=options.target,
        unread=chosen.unread,
        facts={"repository": alias.repository, "revision": snapshot.commit or None},
        citation=alias.citation,
        reporter=reporter,
    )
    notes = [*collection.listing.notes, *_size_mismatches(alias, collection)]
    if not snapshot.commit:
        notes.append(
            f"of which commit the copy in {snapshot.folder} is, is not known; with --revision COMMIT its caches have the key of "
            "those made from the Hub"
        )
    collection.listing.notes = notes
    return collection


def on_disk(alias: Alias) -> Path | None:
    """Return the folder of a copy, in the data folder or the Hub client's cache; reading it shows whether it is complete."""
    local = next((path for path in _candidates(alias, data_folder()) if is_shard_folder(path)), None)
    if local is not None:
        return local
    snapshot = cached_snapshot(alias.repository, None, _has_train_and_test)
    return snapshot.folder if snapshot else None


def candidate_folders(alias: Alias, base: Path) -> str:
    """Return the folders in which a local copy is looked for, for messages."""
    return " or ".join(str(path) for path in _candidates(alias, base))


def _candidates(alias: Alias, base: Path) -> list[Path]:
    return [base / alias.name, base / alias.repository.rpartition("/")[2]]


def _find_local(alias: Alias, options: DatasetOptions) -> Snapshot | None:
    base = options.data or data_folder()
    # A folder that is named may be the dataset itself; the data folder never is.
    for folder in [*([base] if options.data else []), *_candidates(alias, base)]:
        if is_shard_folder(folder):
            return Snapshot(folder, options.revision or _commit_of(folder))
    if options.data:
        raise DatasetError(
            f"no copy of {alias.name} in {base}: there must be train/0.tar, ... and test/0.tar, ... in it, or in "
            f"{candidate_folders(alias, base)}"
        )
    return None


def _find_downloaded(alias: Alias, options: DatasetOptions) -> Snapshot | None:
    snapshot = cached_snapshot(alias.repository, options.revision, _has_train_and_test)
    # What was downloaded may be other splits.
    if snapshot is None or any(not (snapshot.folder / split).is_dir() for split in options.test_splits):
        return None
    return snapshot


def _fetch(alias: Alias, options: DatasetOptions, reporter: Reporter) -> Snapshot:
    reporter.message(f"fetching {alias.name} from the Hugging Face Hub ({alias.repository})")

    def choose(names: Sequence[str]) -> list[str]:
        texts = [name for name in names if name.rpartition("/")[2] in (CLASSES_FILE, COUNT_FILE)]
        splits = options.own_splits
        if options.resplit or not any(name.startswith(f"{TRAIN}/") for name in names):
            splits = tuple({name.partition("/")[0]: None for name in names if name.endswith(".tar")})
        tars = [name for name in names if name.endswith(".tar") and name.partition("/")[0] in splits]
        return [*texts, *sorted(tars, key=lambda name: (name.partition("/")[0], natural(Path(name))))]

    remedy = (
        f"; or put a copy, laid out as there (train/0.tar, ..., classnames.txt), into {candidate_folders(alias, data_folder())}, or "
        "name its folder with --data DIR"
    )
    return fetch_snapshot(alias.repository, options.revision, choose, reporter, remedy)


def _has_train_and_test(folder: Path) -> bool:
    try:
        splits, _ = folder_shards(folder, DatasetOptions())
    except DatasetError:  # a shard that nshards.txt counts is missing
        return False
    return set(splits) == {TRAIN, TEST} and all((folder / split / COUNT_FILE).is_file() for split in splits)


def _commit_of(folder: Path) -> str:
    """Return the commit that a copy is of, where the Hub's client left it: in the path of its cache, or beside a download."""
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    notes = folder / ".cache" / "huggingface" / "download"
    for note in sorted(notes.rglob("*.metadata")) if notes.is_dir() else ():
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and _COMMIT.fullmatch(lines[0].strip()):
            return lines[0].strip()
    return ""


def _size_mismatches(alias: Alias, collection: Collection) -> list[str]:
    """Return notes on sizes that differ from the table."""
    notes = []
    for split, expected in alias.sizes.items():
        rows = collection.listing.parts.get(split)
        if rows is not None and expected is not None and len(rows) != expected:
            notes.append(
                f"{alias.name} has {len(rows)} {split} images, the table of the paper's datasets {expected}"
            )
    labeled = collection.listing.targets.labeled
    if labeled and len(collection.listing.targets.names) != alias.num_classes:
        num_classes = len(collection.listing.targets.names)
        notes.append(
            f"{alias.name} has {num_classes} classes, the table of the paper's datasets {alias.num_classes}"
        )
    return notes
