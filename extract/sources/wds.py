"""``wds:``: WebDataset shards by folder, pattern or address."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.http_files import fetch_all, is_address
from featcache.extraction.sources.shards import (
    COUNT_FILE,
    class_names,
    expand_pattern,
    folder_shards,
    is_shard_folder,
    matching_files,
    natural,
    packed_shards,
    splits_by_name,
    uncounted_shards,
)
from featcache.extraction.sources.split_names import TRAIN, ChosenSplits, choose_splits, note_splits_beside
from featcache.extraction.sources.text_file import read_lines
from featcache.extraction.sources.wds_labels import LabelMember
from featcache.extraction.sources.webdataset import WebDataset
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded
from featcache.store.progress import Reporter

CLASSES, IMAGE, SPLITS, LABEL = "classes", "image", "splits", "label"
NO_SPLITS = "none"


def open_wds(argument: Argument, options: DatasetOptions, reporter: Reporter) -> WebDataset:
    """Open shards as a dataset.

    ``wds:DIR`` is a folder with ``train/`` and ``test/``, or a folder of shards to split. ``wds:PATTERN`` names shards by path
    or address, with ranges such as ``{000..010}``; ``?test=PATTERN`` and the like name the shards of other splits.
    ``?classes=FILE`` has the name of a class in every line. ``?image=KEY`` chooses one of several images of a sample
    (``jpg``, ``seg.png``), ``?label=json.FIELD`` a field of the JSON record as the label. ``?splits=none`` reads shards named after splits as one set.

    Raises:
        RequestError: the folder does not exist, or a field is unknown.
        DatasetError: shards are missing or damaged.
    """
    fields = dict(argument.fields)
    chosen = _Fields(
        fields.pop(CLASSES, None), fields.pop(IMAGE, None), fields.pop(SPLITS, None), fields.pop(LABEL, None)
    )
    if argument.path.is_dir():
        argument.require_fields(CLASSES, IMAGE, SPLITS, LABEL)
        return _open_folder(argument.folder(), options, reporter, chosen)
    patterns = {TRAIN: argument.place, **fields}
    name = Path(argument.place.partition("{")[0]).name.strip("-_.") or Path(argument.place).parent.name
    if not fields:
        paths = _shards(argument.place, reporter)
        return _open(name.removesuffix(".tar"), paths, options, reporter, chosen)
    picked = choose_splits(list(patterns), options, argument.place)
    splits = {split: _shards(patterns[own], reporter) for split, own in picked.names.items()}
    return _dataset(name.removesuffix(".tar"), splits, options, reporter, chosen, picked)


class _Fields:
    """Fields that do not name splits."""

    def __init__(self, classes: str | None, image: str | None, splits: str | None, label: str | None) -> None:
        if splits not in (None, NO_SPLITS):
            raise RequestError(f"{SPLITS} of wds must be {NO_SPLITS}, got {splits!r}")
        self.by_name = splits is None
        self.image = image
        self.label = LabelMember(label)
        self.class_names: list[str] = []
        if classes is not None:
            file = expanded(classes)
            if not file.is_file():
                raise RequestError(f"classes file {file} does not exist")
            self.class_names = read_lines(file)


def _open_folder(folder: Path, options: DatasetOptions, reporter: Reporter, chosen: _Fields) -> WebDataset:
    packed = packed_shards(folder)
    if is_shard_folder(folder):
        splits, picked = folder_shards(folder, options)
        beside = [*folder.glob("*.tar"), *packed]
        chosen.class_names = chosen.class_names or class_names(folder)
        dataset = _dataset(folder.resolve().name, splits, options, reporter, chosen, picked)
        packed = [path for name in picked.names.values() for path in packed_shards(folder / name)]
        for split, own in picked.names.items():
            more = uncounted_shards(folder / own, splits[split])
            _report_left_out(dataset, more, f"tar files of {own}/ beyond those that {COUNT_FILE} counts")
        _report_left_out(dataset, beside, "tar files beside the folders of the splits")
    else:
        paths = sorted(folder.glob("*.tar"), key=natural)
        if not paths:
            raise DatasetError(
                f"{folder} has no tar files, and no folder train or test with some{_advice(folder, packed)}"
            )
        chosen.class_names = chosen.class_names or class_names(folder)
        dataset = _open(folder.resolve().name, paths, options, reporter, chosen)
    _report_left_out(dataset, packed, "compressed tar files")
    return dataset


def _open(
    name: str, paths: Sequence[Path], options: DatasetOptions, reporter: Reporter, chosen: _Fields
) -> WebDataset:
    """Open shards outside of split folders; their names may contain splits."""
    by_name = splits_by_name(paths) if chosen.by_name else {}
    picked = choose_splits(list(by_name), options, name)
    splits = {split: by_name[own] for split, own in picked.names.items()} or {"": list(paths)}
    dataset = _dataset(name, splits, options, reporter, chosen, picked)
    if by_name:
        shown = ", ".join(f"{own} {len(by_name[own])}" for own in by_name)
        note = f"shards of {name} are taken for splits by their names ({shown}; wds:...?{SPLITS}={NO_SPLITS} for none)"
        dataset.listing.notes = [*dataset.listing.notes, note]
    return dataset


def _dataset(
    name: str,
    splits: Mapping[str, Sequence[Path]],
    options: DatasetOptions,
    reporter: Reporter,
    chosen: _Fields,
    picked: ChosenSplits,
) -> WebDataset:
    dataset = WebDataset(
        name,
        splits,
        chosen.class_names,
        target=options.target,
        unread=picked.unread,
        image=chosen.image,
        label=chosen.label,
        reporter=reporter,
    )
    beside = [] if picked.names else note_splits_beside(next(iter(splits.values()))[0])
    dataset.listing.notes = [*dataset.listing.notes, *picked.notes(name), *beside]
    return dataset


def _advice(folder: Path, packed: Sequence[Path]) -> str:
    if packed:
        return f"; {packed[0].name} is compressed: unpack it first (gunzip, unxz, ...), members are read by their place"
    below = next(folder.glob("*/*/*.tar"), None)
    return f"; there are some in {below.parent}" if below else ""


def _report_left_out(dataset: WebDataset, paths: Sequence[Path], description: str) -> None:
    if not paths:
        return
    note = f"{len(paths)} {description} are not read: {', '.join(path.name for path in paths[:3])}"
    dataset.listing.notes = [*dataset.listing.notes, note + (", ..." if len(paths) > 3 else "")]
    dataset.listing.passed_over = {**dataset.listing.passed_over, description: len(paths)}


def _shards(pattern: str, reporter: Reporter) -> list[Path]:
    return fetch_all(expand_pattern(pattern), reporter) if is_address(pattern) else matching_files(pattern)
