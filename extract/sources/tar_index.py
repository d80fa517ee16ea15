"""Where the members of a tar file lie, so that any of them can be read without the rest.

The headers are walked in windows, at the speed at which the disk reads ahead; what can be checked for all of them at once
(checksums, types, names) is checked with numpy. Formats: POSIX.1-2001 (pax), ustar and GNU, as `tarfile` and GNU tar
write them. https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from featcache.extract.sources.base import Rows
from featcache.store.errors import DatasetError

Bytes = npt.NDArray[np.uint8]

BLOCK = 512
WINDOW_BYTES = 2**20
SPARSE_WINDOW_BYTES = 4096
"""Where members are large, reading ahead would read all of them."""
SPARSE_MEMBER_BYTES = 256 * 2**10
MAX_SPECIAL_BYTES = 2**20
"""Long names and pax records are a few hundred bytes; a forged size must not fill the memory."""

_FILES = b"0\0007"
_SPECIAL = b"xgLKSVM"
_SPECIAL_KINDS = tuple(bytes([kind]) for kind in _SPECIAL)
_MAGIC = b"ustar"
_OCTAL = 8 ** np.arange(10, -1, -1)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5": "unzstd"}


@dataclass(frozen=True)
class TarIndex:
    """M plain files in a tar file, in its order."""

    names: list[str]
    offsets: Rows
    """Where the content begins, ``[M]``."""
    sizes: Rows
    """Bytes of the content, ``[M]``."""


@dataclass
class _Headers:
    """Headers of some members in a row."""

    table: Bytes
    """``[M, 512]``."""
    offsets: Rows
    sizes: Rows
    next: int
    """Where the header behind them is."""
    names: dict[int, str]
    """By position, those that stand in a member of their own."""
    ended: bool = False
    """Whether the end of the archive follows."""


def index_tar(path: Path) -> TarIndex:
    """Find all plain files of a tar file.

    Raises:
        DatasetError: it is no tar file, compressed, damaged or truncated; the message says where.
    """
    with path.open("rb", buffering=0) as file:
        _refuse_compressed(file.fileno(), path)
        runs = list(_walk(file, os.fstat(file.fileno()).st_size, path))
    names: list[str] = []
    for run in runs:
        _check_sums(run, path)
        names += _names(run)
    if not names:
        return TarIndex([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    offsets, sizes = (np.concatenate([getattr(run, what) for run in runs]) for what in ("offsets", "sizes"))
    plain = np.concatenate([np.isin(run.table[:, 156], np.frombuffer(_FILES, np.uint8)) for run in runs])
    if not plain.all():
        names = [name for name, kept in zip(names, plain.tolist(), strict=True) if kept]
    return TarIndex(names, offsets[plain] + BLOCK, sizes[plain])


def _refuse_compressed(descriptor: int, path: Path) -> None:
    head = os.pread(descriptor, 8, 0)
    tool = next((tool for magic, tool in _COMPRESSED.items() if head.startswith(magic)), None)
    if tool:
        raise DatasetError(
            f"{path} is no tar file; it is compressed: unpack it with {tool} first, members are read by their place"
        )


def _walk(file: FileIO, total: int, path: Path) -> Iterator[_Headers]:
    """The headers of all members, a window at a time."""
    position, length, members = 0, WINDOW_BYTES, 0
    # One buffer for all windows: fresh memory from the system costs more than the reading.
    window = memoryview(bytearray(WINDOW_BYTES))
    while position + BLOCK <= total:
        file.seek(position)
        size = file.readinto(window[:length]) or 0
        blocks = np.frombuffer(window, np.uint8, size // BLOCK * BLOCK).reshape(-1, BLOCK)
        if not len(blocks):
            break
        # Where members are large, a window holds one or two headers.
        run = _run_of_plain(blocks, position) if length == WINDOW_BYTES else None
        run = run or _run_one_by_one(blocks, position, file.fileno(), path)
        yield run
        if run.next > total:
            _refuse_truncated(path, total, run.next)
        if run.ended:
            return
        position, members = run.next, members + len(run.offsets)
        if position > max(members, 1) * SPARSE_MEMBER_BYTES:
            length = SPARSE_WINDOW_BYTES
    # An end without an empty block is what a copy that broke off at a member's edge looks like.
    _refuse_truncated(path, total, position + 2 * BLOCK)


def _run_of_plain(blocks: Bytes, start: int) -> _Headers | None:
    """Headers that are found all at once: every block with the magic, if their sizes lead from each to the next.

    None if they do not, since content can look like a header, or if there is one of another kind.
    """
    magic = blocks[:, 257] == _MAGIC[0]
    for place, value in enumerate(_MAGIC[1:], 258):
        magic &= blocks[:, place] == value
    found = np.flatnonzero(magic)
    if not len(found) or found[0] != 0:
        return None
    table = blocks[found]
    digits = table[:, 124:135].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or np.isin(table[:, 156], np.frombuffer(_SPECIAL, np.uint8)).any():
        return None
    sizes = digits @ _OCTAL
    behind = found + 1 + -(-sizes // BLOCK)
    if (behind[:-1] != found[1:]).any():
        return None
    # What follows the last one within the window has no magic: the end, which the next window tells.
    return _Headers(table, start + found * BLOCK, sizes, start + int(behind[-1]) * BLOCK, {})


def _run_one_by_one(blocks: Bytes, start: int, descriptor: int, path: Path) -> _Headers:
    """Headers of all kinds, each found by the one before; the first of the window at least."""
    found: list[int] = []
    sizes: list[int] = []
    names: dict[int, str] = {}
    long_name: str | None = None
    long_size: int | None = None
    at, last = 0, 0
    while at < len(blocks):
        header, position = blocks[at].tobytes(), start + at * BLOCK
        if header[156:157] in _SPECIAL_KINDS:
            size = _special_size(header, path, position)
            content = os.pread(descriptor, size, position + BLOCK)
            name, special = _read_special(header[156:157], content, path, position)
            long_name, long_size = name or long_name, special or long_size
            behind = at + 1 + -(-size // BLOCK)
            if behind >= len(blocks) and not found:
                # What it is about is in the next window, which then has to begin here.
                blocks = _longer(descriptor, start, behind + 1, path)
            at = behind
            continue
        if not header.rstrip(b"\0"):
            return _headers(blocks, start, found, sizes, start + at * BLOCK, names, ended=True)
        size = _size(header, path, position)
        if long_size is not None:
            size, long_size = long_size, None
        if long_name is not None:
            names[len(found)], long_name = long_name, None
        found.append(at)
        sizes.append(size)
        at = last = at + 1 + -(-size // BLOCK)
    # Long names at the very end belong to what follows, and are read again with it.
    return _headers(blocks, start, found, sizes, start + last * BLOCK, names)


def _longer(descriptor: int, start: int, count: int, path: Path) -> Bytes:
    window = os.pread(descriptor, count * BLOCK, start)
    if len(window) < count * BLOCK:
        _refuse_truncated(path, start + len(window), start + (count + 2) * BLOCK)
    return np.frombuffer(window, np.uint8).reshape(-1, BLOCK)


def _headers(
    blocks: Bytes,
    start: int,
    found: list[int],
    sizes: list[int],
    behind: int,
    names: dict[int, str],
    *,
    ended: bool = False,
) -> _Headers:
    places = np.array(found, np.int64)
    return _Headers(blocks[places], start + places * BLOCK, np.array(sizes, np.int64), behind, names, ended)


def _refuse_truncated(path: Path, total: int, wanted: int) -> NoReturn:
    raise DatasetError(
        f"{path} is truncated: {total} bytes, there must be at least {wanted}; download or copy it again"
    )


def _special_size(header: bytes, path: Path, position: int) -> int:
    try:
        size = int(header[124:135].rstrip(b"\0 "), 8)
    except ValueError:
        size = MAX_SPECIAL_BYTES + 1
    if size > MAX_SPECIAL_BYTES or header[156:157] in b"SVM":
        kind = chr(header[156])
        raise DatasetError(
            f"{path}: a member of type {kind!r} at byte {position} cannot be read; pack it again with tar"
        )
    return size


def _read_special(kind: bytes, content: bytes, path: Path, position: int) -> tuple[str | None, int | None]:
    """Name and size of the next member, as far as a long name or a pax record gives them."""
    if kind == b"L":
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape"), None
    if kind != b"x":  # global records, and long names of links
        return None, None
    name: str | None = None
    size: int | None = None
    while content and content[0]:
        head, _, rest = content.partition(b" ")
        length = int(head) if head.isdigit() else 0
        field, separator, value = rest[: length - len(head) - 1].rstrip(b"\n").partition(b"=")
        if length <= len(head) or not separator:
            raise DatasetError(f"{path} is damaged: its extended header at byte {position} cannot be read")
        if field == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif field == b"size" and value.isdigit():
            size = int(value)
        content = content[length:]
    return name, size


def _size(header: bytes, path: Path, position: int) -> int:
    """The size of a member: octal, padded or not, or in base 256, as GNU tar writes it from 8 GiB on."""
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        pass
    if position == 0:
        raise DatasetError(f"{path} is no tar file")
    raise DatasetError(f"{path} is damaged: there is no header at byte {position}; download or copy it again")


def _check_sums(run: _Headers, path: Path) -> None:
    """Every header has the sum of its bytes, its own field counted as spaces, in octal."""
    table = run.table
    sums = (
        table.sum(1, dtype=np.uint32).astype(np.int64)
        - table[:, 148:156].sum(1, dtype=np.int64)
        + 8 * ord(" ")
    )
    digits = table[:, 148:154].astype(np.int64) - ord("0")
    wrong = ((digits < 0) | (digits > 7)).any(1) | (digits @ _OCTAL[-6:] != sums)
    for index in np.flatnonzero(wrong).tolist():
        text = table[index, 148:156].tobytes().strip(b"\0 ")  # written in some other way, or wrong
        if not text.isdigit() or set(text) & set(b"89") or int(text, 8) != sums[index]:
            if run.offsets[index] == 0:
                raise DatasetError(f"{path} is no tar file")
            raise DatasetError(
                f"{path} is damaged: the header at byte {run.offsets[index]} has a wrong checksum; download or copy it again"
            )


def _names(run: _Headers) -> list[str]:
    # numpy leaves out the zeros at the end; in a name there are none.
    stored: list[bytes] = run.table[:, :100].copy().view("S100").ravel().tolist()
    if not stored:
        return []
    names = b"\0".join(stored)
    if names.count(b"\0") >= len(stored):  # what follows the end of a name is rubbish
        names = b"\0".join(one.partition(b"\0")[0] for one in stored)
    texts = names.decode("utf-8", "surrogateescape").split("\0")
    # ustar keeps the beginning of a long path apart; GNU tar has other things in its place.
    ustar = (run.table[:, 257:263] == np.frombuffer(b"ustar\0", np.uint8)).all(1) & (run.table[:, 345] != 0)
    for index in np.flatnonzero(ustar).tolist():
        prefix = run.table[index, 345:500].tobytes().partition(b"\0")[0].decode("utf-8", "surrogateescape")
        texts[index] = f"{prefix}/{texts[index]}"
    for index, name in run.names.items():
        texts[index] = name
    return texts
