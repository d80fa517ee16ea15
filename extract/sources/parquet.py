"""``hf:REPO``: image datasets of the Hugging Face Hub in parquet files, the Hub's own conversion included.

A column of images holds ``{bytes, path}``; a column of labels integers, whose names stand in the file's metadata. Rows are
read a row group at a time, so what is read next is asked for in order.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.array_labels import (
    InferredTargets,
    array_targets,
    label_text,
    text_targets,
    unlabeled_targets,
)
from featcache.extraction.sources.base import Citation, Rows
from featcache.extraction.sources.card_license import card_license
from featcache.extraction.sources.collection import Collection, Listing, listing_digest, unlabeled_note
from featcache.extraction.sources.data_folders import data_folder
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.hub_files import cached_snapshot, fetch_snapshot
from featcache.extraction.sources.parquet_files import (
    check_group,
    check_images,
    class_names,
    open_parquet,
    parquet_errors,
)
from featcache.extraction.sources.samples import Texts
from featcache.extraction.sources.shards import natural
from featcache.extraction.sources.split_names import choose_splits
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.progress import Reporter
from featcache.store.targets import UNLABELED

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL.Image import Image

CONVERTED = "refs/convert/parquet"
CARD = "README.md"
FIELDS = ("image", "label", "config")
IMAGE_COLUMNS, LABEL_COLUMNS = (
    ("image", "img", "images", "picture"),
    ("label", "labels", "fine_label", "target", "class"),
)
KEPT_GROUPS = 2
_SPLIT = re.compile(r"(.+?)(-\d+-of-\d+|[-_]\d+)?")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


class ParquetImages(Collection):
    """Images in parquet files.

    Args:
        name: of the dataset.
        splits: files of every split, in order.
        argument: may name the columns.
        options: kind of the targets, and the column of groups.
        unread: other splits that are there.
        facts: further parts of the identity.
    """

    source_type = "hf"

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Sequence[Path]],
        argument: Argument,
        options: DatasetOptions,
        unread: Sequence[str],
        facts: Mapping[str, Any],
    ) -> None:
        self.name = name
        self._paths = [path for paths in splits.values() for path in paths]
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        first = self._file(0)
        names = first.schema_arrow.names
        self._image = _column("image", argument, IMAGE_COLUMNS, names, self._paths[0])
        notes: list[str] = []
        label = None
        if options.target != UNLABELED:
            label = self._label_column(argument, options, names, notes)
        table = self._read(splits, label, options.group_by)
        if table.sizes and max(table.sizes) < 0:
            raise DatasetError(
                f"{self._paths[0]}: column {self._image!r} holds no images, only paths at most; read them with csv: or imagefolder:"
            )
        self._positions = np.array(table.positions, np.int64).reshape(-1, 3)
        ids = [f"{split}/{row}" for split, rows in table.parts.items() for row in range(len(rows))]
        if label is None:
            inferred = unlabeled_targets(len(ids), notes)
        else:
            inferred = _targets(table.labels, options.target, class_names(first, label, self._paths[0]), name)
        self.listing = Listing(
            Texts.of(ids),
            inferred.labels,
            inferred.targets,
            listing_digest(inferred.targets.names, ids, table.sizes, inferred.labels),
            table.parts,
            unread,
            {options.group_by: table.groups} if options.group_by else {},
            facts,
            inferred.notes,
        )

    def _label_column(
        self, argument: Argument, options: DatasetOptions, names: Sequence[str], notes: list[str]
    ) -> str | None:
        """Return the column of the labels; None, and a note, where there is nothing but images and groups."""
        if "label" not in argument.fields and not {*names} - {self._image, options.group_by}:
            notes.append(unlabeled_note(self.name))
            return None
        hint = f"; or take the images without labels (--target {UNLABELED})"
        return _column("label", argument, LABEL_COLUMNS, names, self._paths[0], hint)

    def _read(
        self, splits: Mapping[str, Sequence[Path]], label: str | None, group_by: str | None
    ) -> "_Table":
        """Read all columns but the images, of all files."""
        table, start = _Table(), 0
        files = iter(range(len(self._paths)))
        for split, paths in splits.items():
            for number in islice(files, len(paths)):
                with parquet_errors(self._paths[number]):
                    file = self._file(number)
                    check_images(file.schema_arrow, self._image, self._paths[number])
                    for group in range(file.num_row_groups):
                        rows = file.metadata.row_group(group).num_rows
                        table.positions += [(number, group, row) for row in range(rows)]
                    table.labels += self._read_column(number, label) if label else []
                    table.sizes += self._lengths(number)
                    table.groups += self._read_column(number, group_by) if group_by else []
                labels = len(table.labels) if label else len(table.positions)
                if not len(table.positions) == labels == len(table.sizes):
                    raise DatasetError(f"{self._paths[number]} is damaged: its columns differ in length")
            table.parts[split], start = np.arange(start, len(table.positions)), len(table.positions)
        return table

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the files of all splits that are read."""
        return self._paths

    def image(self, row: int) -> "Image":
        """Decode one image."""
        number, group, place = (int(number) for number in self._positions[row])
        stored = self._group(number, group)[place].as_py()
        content = stored.get("bytes") if isinstance(stored, dict) else stored
        where = f"{self.listing.ids[row]} in {self._paths[number]}"
        if not isinstance(content, bytes):
            raise DatasetError(f"image {where} is not in the file (column {self._image!r} holds no bytes)")
        return decode(io.BytesIO(content), where)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files and what was read of them."""
        return {**self.__dict__, "_files": {}, "_groups": OrderedDict()}

    def _group(self, number: int, group: int) -> "pa.ChunkedArray":
        images = self._groups.pop((number, group), None)
        if images is None:
            with parquet_errors(self._paths[number]):
                file = self._file(number)
                check_group(file, group, self._image, self._paths[number])
                images = file.read_row_group(group, columns=[self._image]).column(0)
            while len(self._groups) >= KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups[number, group] = images
        return images

    def _file(self, number: int) -> "pq.ParquetFile":
        if number not in self._files:
            self._files[number] = open_parquet(self._paths[number])
        return self._files[number]

    def _read_column(self, number: int, name: str) -> list[Any]:
        names = self._file(number).schema_arrow.names
        if name not in names:
            raise UnknownNameError("column", name, names, f"({self._paths[number]})")
        values: list[Any] = self._file(number).read(columns=[name]).column(0).to_pylist()
        return values

    def _lengths(self, number: int) -> list[int]:
        """Return the bytes of every image, for the identity."""
        import pyarrow as pa
        import pyarrow.compute as pc

        lengths: list[int] = []
        file = self._file(number)
        for group in range(file.num_row_groups):
            check_group(file, group, self._image, self._paths[number])
        for batch in file.iter_batches(columns=[self._image], batch_size=1024):
            column = batch.column(0)
            content = column.field("bytes") if pa.types.is_struct(column.type) else column
            if pa.types.is_null(content.type):
                lengths += [-1] * len(content)
            elif pa.types.is_fixed_size_binary(content.type):
                lengths += [-1 if null else content.type.byte_width for null in content.is_null().to_pylist()]
            else:
                lengths += pc.fill_null(pc.binary_length(content), -1).to_pylist()
        return lengths


def open_hf(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ParquetImages:
    """Open a repository of the Hub, or with ``--data DIR`` a local copy, as a dataset.

    Columns are ``image`` and ``label``, or other usual names, or those of ``?image=NAME&label=NAME``; ``?config=NAME``
    chooses among several configurations.

    Raises:
        UnknownNameError: there is no such repository, configuration, split or column.
        DatasetError: it cannot be fetched, or holds no images in parquet files.
    """
    argument.require_fields(*FIELDS)
    _require_pyarrow()
    repository = argument.place
    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"hf:{repository} is no repository of the Hub; write hf:OWNER/NAME")
    folder, commit, choice = _find(repository, argument, options, reporter)
    splits = {split: [folder / name for name in names] for split, names in choice.splits.items()}
    facts = {"repository": repository, "revision": commit or None}
    if "config" in argument.fields:
        facts["config"] = argument.fields["config"]
    images = ParquetImages(repository.rpartition("/")[2], splits, argument, options, choice.unread, facts)
    images.citation = Citation(
        card_license(folder / CARD), None, f"https://huggingface.co/datasets/{repository}"
    )
    return images


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise RequestError("hf: reads parquet files with pyarrow; run: pip install 'pyarrow>=15'") from None


def _find(
    repository: str, argument: Argument, options: DatasetOptions, reporter: Reporter
) -> tuple[Path, str, "_Choice"]:
    """Return the folder of a copy, its commit, and the selected files."""
    local = data_folder() / repository
    copy = options.data or local
    names = _parquet_below(copy)
    if names:
        return copy, options.revision or "", _choose(names, argument, options)
    if options.data:
        raise DatasetError(f"no copy of {repository} in {copy}: there are no parquet files in it")
    revisions = [options.revision] if options.revision else [None, CONVERTED]
    for revision in revisions:
        snapshot = cached_snapshot(repository, revision, lambda folder: False)
        names = _parquet_below(snapshot.folder) if snapshot else []
        if snapshot and names:
            # What was downloaded may be another configuration, or other splits.
            with suppress(RequestError):
                return snapshot.folder, snapshot.commit, _choose(names, argument, options)
    remedy = f"; or put a copy into {local}, or name its folder with --data DIR"
    for revision in revisions:
        reporter.message(f"fetching {repository} from the Hugging Face Hub")
        chosen: list[_Choice] = []

        def choose(every: Sequence[str], chosen: "list[_Choice]" = chosen) -> Sequence[str]:
            parquet = [name for name in every if name.endswith(".parquet")]
            if parquet:
                chosen.append(_choose(parquet, argument, options))
            selected = [name for choice in chosen for names in choice.splits.values() for name in names]
            return [*(name for name in every if name == CARD), *selected]

        fetched = fetch_snapshot(repository, revision, choose, reporter, remedy)
        if chosen:
            return fetched.folder, fetched.commit, chosen[0]
    raise DatasetError(f"{repository} has no parquet files, and the Hub has not converted it")


@dataclass
class _Table:
    """Columns that are read from all files at once."""

    positions: list[tuple[int, int, int]] = field(default_factory=list)
    """File, row group and row in it of every image."""
    labels: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes of every image, -1 where there is none."""
    groups: list[Any] = field(default_factory=list)
    parts: dict[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class _Choice:
    """Selection of the files of a repository."""

    splits: Mapping[str, Sequence[str]]
    """Files by split, in order."""
    unread: Sequence[str]
    """Other splits."""


def _parquet_below(folder: Path) -> list[str]:
    return (
        [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")] if folder.is_dir() else []
    )


def _choose(names: Sequence[str], argument: Argument, options: DatasetOptions) -> _Choice:
    """Choose files by their names: ``data/train-00000-of-00002.parquet``, ``CONFIG/train/0000.parquet``."""
    configurations: dict[str, dict[str, list[str]]] = {}
    for path in sorted(map(PurePosixPath, names), key=lambda path: (str(path.parent), natural(path))):
        folders = list(path.parts[:-1])
        match = _SPLIT.fullmatch(path.stem)
        split = match[1] if match else path.stem
        if split.isdigit():
            split = folders.pop() if folders else "train"
        config = "/".join(folder for folder in folders if folder != "data")
        configurations.setdefault(config, {}).setdefault(split, []).append(str(path))
    config = argument.fields.get(
        "config", "default" if "default" in configurations else next(iter(configurations))
    )
    if config not in configurations:
        raise UnknownNameError("configuration", config, configurations)
    if len(configurations) > 1 and "config" not in argument.fields and config != "default":
        raise RequestError(
            f"{argument.place} has configurations {', '.join(configurations)}; choose one with hf:REPO?config=NAME"
        )
    chosen = choose_splits(list(configurations[config]), options, argument.place)
    splits = {name: configurations[config][spelling] for name, spelling in chosen.names.items()}
    return _Choice(splits, list(chosen.unread))


def _column(
    role: str, argument: Argument, usual: Iterable[str], names: Sequence[str], path: Path, hint: str = ""
) -> str:
    given = argument.fields.get(role)
    if given and given not in names:
        raise UnknownNameError("column", given, names, f"({path})")
    column = given or next((name for name in usual if name in names), None)
    if column is None:
        raise RequestError(
            f"{path} has no column {role}; it has {', '.join(names)}: name it as in hf:REPO?{role}=NAME{hint}"
        )
    return column


def _targets(values: Sequence[Any], target: str, names: Sequence[str], where: str) -> InferredTargets:
    missing = next((row for row, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise DatasetError(f"{where}: row {missing} has no label")
    if not values:
        raise DatasetError(f"{where} holds no samples")
    if isinstance(values[0], str | bytes):
        texts = [label_text(value, row, where) for row, value in enumerate(values)]
        return text_targets(texts, target, (), where)
    if not isinstance(values[0], int | float | list):
        raise DatasetError(f"{where}: labels are {type(values[0]).__name__}; they must be numbers or texts")
    try:
        table = np.array(values)
    except (ValueError, OverflowError):
        raise DatasetError(f"{where}: labels are lists of different lengths") from None
    if table.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: labels are lists that hold something else than numbers")
    return array_targets([table], target, names, where)
