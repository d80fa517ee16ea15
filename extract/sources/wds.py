"""``wds:``: WebDataset shards by folder, pattern or address."""

from collections.abc import Sequence
from pathlib import Path

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.dataset import DatasetOptions
from featcache.extract.sources.http_files import fetch_all, is_address
from featcache.extract.sources.shards import (
    class_names,
    expand,
    folder_shards,
    is_shard_folder,
    matching_files,
    natural,
)
from featcache.extract.sources.split_names import TRAIN
from featcache.extract.sources.webdataset import WebDataset
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded
from featcache.store.progress import Reporter

CLASSES = "classes"


def open_wds(argument: Argument, options: DatasetOptions, reporter: Reporter) -> WebDataset:
    """Open shards as a dataset.

    ``wds:DIR`` is a folder with ``train/`` and ``test/``, or one of shards that are to be split; ``wds:PATTERN`` shards by
    path or address, ``{000..010}`` spelt out; ``?test=PATTERN`` and other splits by name behind it; ``?classes=FILE`` has
    the name of a class in every line.

    Raises:
        RequestError: there is no such folder.
        DatasetError: shards are missing or damaged.
    """
    fields = dict(argument.fields)
    classes = _class_names(fields.pop(CLASSES, None))
    if argument.path.is_dir():
        return _open_folder(argument, options, reporter, classes)
    patterns = {TRAIN: argument.place, **fields} if fields else {"": argument.place}
    wanted = [split for split in patterns if split in ("", *options.own_splits)]
    splits = {split: _shards(patterns[split], reporter) for split in wanted}
    unread = [split for split in patterns if split not in wanted]
    name = Path(argument.place.partition("{")[0]).name.strip("-_.") or Path(argument.place).parent.name
    return WebDataset(
        name.removesuffix(".tar"), splits, classes, target=options.target, unread=unread, reporter=reporter
    )


def _open_folder(
    argument: Argument, options: DatasetOptions, reporter: Reporter, classes: Sequence[str]
) -> WebDataset:
    argument.require_fields(CLASSES)
    folder = argument.folder()
    splits: dict[str, list[Path]]
    if is_shard_folder(folder):
        splits, unread = folder_shards(folder, options.own_splits)
        if not splits:
            raise DatasetError(
                f"{folder} has no split {' or '.join(options.own_splits)}; it has {', '.join(unread)}"
            )
    else:
        splits, unread = {"": sorted(folder.glob("*.tar"), key=natural)}, []
        if not splits[""]:
            raise DatasetError(f"{folder} has no tar files, and no folder train or test with some")
    return WebDataset(
        folder.resolve().name,
        splits,
        classes or class_names(folder),
        target=options.target,
        unread=unread,
        reporter=reporter,
    )


def _shards(pattern: str, reporter: Reporter) -> list[Path]:
    return fetch_all(expand(pattern), reporter) if is_address(pattern) else matching_files(pattern)


def _class_names(path: str | None) -> list[str]:
    if path is None:
        return []
    file = expanded(path)
    if not file.is_file():
        raise RequestError(f"classes file {file} does not exist")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
