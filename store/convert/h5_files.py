"""Open HDF5 files of any origin: check where their bytes lie before anything is read.

An HDF5 file can name other files as the place of its data: by links, as the storage of an array, as a part of a virtual
array. These files would be read with the rights of the user, and their content stored in a cache that is then shared. An
HDF5 file can also ask for a filter that is loaded from a folder, and declare arrays far larger than itself. All readers use
this module.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from featcache.store.errors import DatasetError, FeatcacheError
from featcache.store.text import printable, reason
from featcache.store.unpacking import MAX_RATIO

if TYPE_CHECKING:
    import h5py

MAX_LINKS = 32
"""Most links that are followed to one array."""
SMALL_BYTES = 2**26
"""Bytes that an array may declare without being stored, so that it has its fill value."""
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
"""Filters built into HDF5 and h5py; others are libraries that HDF5 loads from a folder."""
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""Errors that h5py raises for damaged files."""
_LISTED = 20


def open_h5(path: Path) -> "h5py.File":
    """Open an HDF5 file for reading.

    Raises:
        DatasetError: the file is not an HDF5 file.
    """
    import h5py

    if not path.is_file():
        raise DatasetError(f"{path} cannot be read as HDF5 (it is no regular file)")
    try:
        return h5py.File(path, "r")
    except _ERRORS as error:
        raise DatasetError(f"{path} cannot be read as HDF5 ({reason(error)})") from None


@contextmanager
def h5_errors(where: object) -> Iterator[None]:
    """Turn any error that h5py raises for damaged data into a `DatasetError` that begins with `where`."""
    try:
        yield
    except FeatcacheError:
        raise
    except _ERRORS as error:
        raise DatasetError(f"{where} cannot be read ({reason(error)})") from error


def find_dataset(file: "h5py.File", path: Path, name: str, *, linked: bool = False) -> "h5py.Dataset | None":
    """Return an array whose bytes all lie in this file; None if there is no array of this name.

    Args:
        file: the open file.
        path: path of the file, for errors.
        name: name of the array, with ``/`` between groups.
        linked: a virtual array may have parts in files beside this one, as in `find_linked`.

    Raises:
        DatasetError: the array lies in another file, needs a filter that is not built in, or is larger than its stored
            bytes allow; or the file is damaged.
    """
    import h5py

    with h5_errors(f"{path}: {printable(name)}"):
        target = _walk(file, path, name)
        if isinstance(target, _External):
            raise DatasetError(
                f"{path}: {printable(name)} is a link into another file ({printable(target.file)[:200]}), which is not followed; "
                "copy the array into this file"
            )
        if not isinstance(target, h5py.Dataset):
            return None
        _check_dataset(target, path, name, linked=linked)
        return target


def find_linked(path: Path, name: str) -> tuple[Path, str] | None:
    """Return the file of an array that may be linked, and the name of the array in that file.

    Links, and parts of virtual arrays, may lead to HDF5 files in the same folder as `path` or below it, and nowhere else.

    Raises:
        DatasetError: a link leads out of the folder, or in a circle; otherwise as `find_dataset`.
    """
    import h5py

    folder = path.resolve().parent
    for _ in range(MAX_LINKS):
        with open_h5(path) as file, h5_errors(f"{path}: {printable(name)}"):
            target = _walk(file, path, name)
            if isinstance(target, h5py.Dataset):
                _check_dataset(target, path, name, linked=True)
                return path, target.name
            if target is None or not isinstance(target, _External):
                return None
        path, name = _linked_file(path, target.file, folder, name), target.name
    raise DatasetError(
        f"{path}: {printable(name)} is behind more than {MAX_LINKS} links; they lead in a circle"
    )


def group_size(file: "h5py.File", path: Path, name: str) -> int | None:
    """Return the entries of a group in this file; None if there is no group of this name."""
    import h5py

    with h5_errors(f"{path}: {printable(name)}"):
        target = _walk(file, path, name)
        return len(target) if isinstance(target, h5py.Group) else None


def list_datasets(file: "h5py.File", path: Path) -> list[tuple[str, str]]:
    """Return the names of all arrays in this file, each with a description of its shape and type.

    Raises:
        DatasetError: the file is damaged.
    """
    import h5py

    datasets: list[tuple[str, str]] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets.append((name, f"{list(item.shape or ())} {item.dtype}"))

    with h5_errors(path):
        file.visititems(note)
    return datasets


def format_listing(file: "h5py.File", path: Path) -> str:
    """Return the arrays of a file in one line, for errors."""
    try:
        datasets = list_datasets(file, path)
    except DatasetError:
        return "arrays that cannot be listed, since the file is damaged"
    shown = ", ".join(f"{printable(name)} {form}" for name, form in datasets[:_LISTED])
    return shown + (", ..." if len(datasets) > _LISTED else "") if datasets else "no arrays"


def read_texts(dataset: "h5py.Dataset", path: Path, name: str) -> list[str]:
    """Return all values of an array as text, in order.

    Raises:
        DatasetError: a value is not UTF-8, or repeated references to a few stored texts would fill the memory.
    """
    where = f"{path}: {printable(name)}"
    most, total, texts = max(SMALL_BYTES, path.stat().st_size), 0, []
    step = max(1, SMALL_BYTES // 64 // max(1, prod(dataset.shape[1:])))
    with h5_errors(where):
        rows = range(0, dataset.shape[0], step) if dataset.shape else ()
        for start in rows:
            values = dataset[start : start + step].ravel().tolist()
            for row, value in enumerate(values, start):
                if isinstance(value, bytes | str):
                    total += len(value)
                if total > most:
                    raise DatasetError(f"{where}: its texts are longer than the whole file")
                texts.append(_text(value, where, row))
    return texts


def _text(value: Any, where: str, row: int) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError:
        raise DatasetError(
            f"{where}: row {row} is not UTF-8 ({ascii(value)[:60]}); write it as UTF-8"
        ) from None
    return text


@dataclass(frozen=True)
class _External:
    """The target of a link to another file."""

    file: str
    name: str


def _walk(file: "h5py.File", path: Path, name: str) -> Any:
    """Resolve a name, one link at a time, to an object of the file, an `_External`, or None."""
    import h5py

    parts, group, links = deque(_parts(name)), file, 0
    while parts:
        if not isinstance(group, h5py.Group):
            return None
        step = parts.popleft()
        encoded = step.encode()
        if not group.id.links.exists(encoded):
            return None
        kind = group.id.links.get_info(encoded).type
        if kind == h5py.h5l.TYPE_HARD:
            group = group[step]
            continue
        links += 1
        if links > MAX_LINKS or kind not in (h5py.h5l.TYPE_SOFT, h5py.h5l.TYPE_EXTERNAL):
            why = (
                "is behind links that lead in a circle"
                if links > MAX_LINKS
                else "is a link of an unknown kind"
            )
            raise DatasetError(f"{path}: {printable(name)} {why}")
        link = group.get(step, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            return _External(link.filename, "/".join((link.path, *parts)))
        if link.path.startswith("/"):
            group = file
        parts.extendleft(reversed(_parts(link.path)))
    return group


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _linked_file(path: Path, named: str, folder: Path, name: str) -> Path:
    """Return the file that another file refers to, if it lies in `folder` or below it."""
    spot, linked = PurePosixPath(named), path.parent / named
    outside = spot.is_absolute() or ".." in spot.parts or "\0" in named or "%" in named
    if outside or not linked.resolve().is_relative_to(folder):
        raise DatasetError(
            f"{path}: {printable(name)} is a link to {printable(named)[:200]}, outside of the folder of the file, which is not "
            "followed; copy the array into this file"
        )
    if not linked.is_file():
        raise DatasetError(
            f"{path}: {printable(name)} is a link to {printable(named)[:200]}, which is not there"
        )
    return linked


def _check_dataset(dataset: "h5py.Dataset", path: Path, name: str, *, linked: bool) -> None:
    """Refuse an array whose bytes lie elsewhere, need foreign code, or cannot fill the declared shape."""
    import h5py

    where, layout = f"{path}: {printable(name)}", dataset.id.get_create_plist()
    if dataset.shape is None:
        raise DatasetError(f"{where} has no values (its dataspace is null)")
    if layout.get_external_count():
        named = printable(layout.get_external(0)[0].decode("utf-8", "replace"))
        raise DatasetError(
            f"{where} has its values in another file ({named[:200]}), which is not read; store them in this file"
        )
    for index in range(layout.get_nfilters()):
        code, _, _, title = layout.get_filter(index)
        if code not in FILTERS:
            shown = printable(title.decode("utf-8", "replace"))[:60]
            raise DatasetError(
                f"{where} is packed with filter {code} ({shown}), which HDF5 does not bring along; pack it anew: "
                "h5repack -f GZIP=4 OLD NEW"
            )
    size = prod(dataset.shape) * dataset.id.get_type().get_size()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        stored = _check_sources(dataset, path, name, linked=linked)
        most = max(SMALL_BYTES, stored)
    else:
        size = max(size, _chunk_bytes(dataset))
        most = max(SMALL_BYTES, MAX_RATIO * min(dataset.id.get_storage_size(), path.stat().st_size))
    if size > most:
        raise DatasetError(
            f"{where} is declared as {list(dataset.shape)} {dataset.dtype}, {size} bytes, more than the file can "
            "hold; it is damaged"
        )
    offset = dataset.id.get_offset()
    if (
        layout.get_layout() == h5py.h5d.CONTIGUOUS
        and offset is not None
        and offset + size > path.stat().st_size
    ):
        raise DatasetError(f"{where} ends behind the end of the file; download or copy it again")


def _chunk_bytes(dataset: "h5py.Dataset") -> int:
    """Return the bytes of one chunk, for which HDF5 allocates memory; 0 for arrays without chunks."""
    return prod(dataset.chunks) * int(dataset.id.get_type().get_size()) if dataset.chunks else 0


def _check_sources(dataset: "h5py.Dataset", path: Path, name: str, *, linked: bool) -> int:
    """Check the parts of a virtual array by the same rules; return their size in bytes."""
    import h5py

    where, folder, total = f"{path}: {printable(name)}", path.resolve().parent, 0
    for source in dataset.virtual_sources():
        own = source.file_name == "."
        if not own and not linked:
            raise DatasetError(
                f"{where} is put together from another file ({printable(source.file_name)[:200]}), which is not read; copy "
                "the values into this file"
            )
        if "%" in source.dset_name:
            raise DatasetError(f"{where} is put together from arrays by a pattern, which is not read")
        part = path if own else _linked_file(path, source.file_name, folder, name)
        with open_h5(part) as file:
            part_dataset = find_dataset(file, part, source.dset_name)
            if part_dataset is None or part_dataset.id.get_create_plist().get_layout() == h5py.h5d.VIRTUAL:
                raise DatasetError(f"{where}: its part {printable(source.dset_name)} in {part} is not there")
            total += prod(part_dataset.shape) * int(part_dataset.id.get_type().get_size())
    return total
