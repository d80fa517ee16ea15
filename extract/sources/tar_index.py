"""Where the members of a tar file lie, so that any of them can be read without the rest.

The headers are walked in windows, at the speed at which the disk reads ahead; what can be checked for all of them at once
(checksums, types, names) is checked with numpy. Formats: POSIX.1-2001 (pax), ustar and GNU, as `tarfile` and GNU tar
write them. https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featcache.extract.sources.base import Rows
from featcache.store.errors import DatasetError

BLOCK = 512
WINDOW_BYTES = 4 * 2**20
SPARSE_WINDOW_BYTES = 4096
"""Where members are large, reading ahead would read all of them."""
SPARSE_MEMBER_BYTES = 256 * 2**10
MAX_SPECIAL_BYTES = 2**20
"""Long names and pax records are a few hundred bytes; a forged size must not fill the memory."""

_FILES = b"0\0007"
_SPECIAL = b"xgLKSVM"
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


@dataclass(frozen=True)
class TarIndex:
    """M plain files in a tar file, in its order."""

    names: list[str]
    offsets: Rows
    """Where the content begins, ``[M]``."""
    sizes: Rows
    """Bytes of the content, ``[M]``."""


class _Header(NamedTuple):
    offset: int
    size: int


def index_tar(path: Path) -> TarIndex:
    """Find all plain files of a tar file.

    Raises:
        DatasetError: it is no tar file, compressed, damaged or truncated; the message says where.
    """
    with path.open("rb", buffering=0) as file:
        offsets, sizes, headers, overrides = _walk(file.fileno(), os.fstat(file.fileno()).st_size, path)
    if not offsets:
        return TarIndex([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    _check_sums(table, offsets, path)
    names = _names(table, overrides)
    plain = np.isin(table[:, 156], np.frombuffer(_FILES, np.uint8))
    kept = np.flatnonzero(plain).tolist()
    return TarIndex(
        [names[index] for index in kept],
        np.array(offsets, np.int64)[kept] + BLOCK,
        np.array(sizes, np.int64)[kept],
    )


def _walk(
    descriptor: int, total: int, path: Path
) -> tuple[list[int], list[int], list[bytes], dict[int, str]]:
    """Offset, size and header of every member, and the names that stand in a member of their own."""
    offsets: list[int] = []
    sizes: list[int] = []
    headers: list[bytes] = []
    overrides: dict[int, str] = {}
    window, start, length, position = b"", 0, WINDOW_BYTES, 0
    long_name: str | None = None
    long_size: int | None = None
    while position + BLOCK <= total:
        at = position - start
        if at < 0 or at + BLOCK > len(window):
            window, start, at = os.pread(descriptor, length, position), position, 0
            if len(window) < BLOCK:
                break
        header = window[at : at + BLOCK]
        if header[156] in _SPECIAL:
            size = _special_size(header, path, position)
            content = os.pread(descriptor, size, position + BLOCK)
            name, special = _read_special(header[156:157], content, path, position)
            long_name, long_size = name or long_name, special or long_size
            position += BLOCK + -(-size // BLOCK) * BLOCK
            continue
        try:
            size = int(header[124:135], 8)
        except ValueError:
            if not any(header):
                return offsets, sizes, headers, overrides
            size = _odd_size(header, path, position)
        if long_size is not None:
            size, long_size = long_size, None
        if long_name is not None:
            overrides[len(offsets)], long_name = long_name, None
        offsets.append(position)
        sizes.append(size)
        headers.append(header)
        position += BLOCK + -(-size // BLOCK) * BLOCK
        if position > total:
            _refuse_truncated(path, total, position)
        if len(offsets) == 64 and position > 64 * SPARSE_MEMBER_BYTES:
            length = SPARSE_WINDOW_BYTES
    # An end without the two empty blocks is what a copy that broke off at a member's edge looks like.
    _refuse_truncated(path, total, total + 2 * BLOCK)
    raise AssertionError


def _refuse_truncated(path: Path, total: int, wanted: int) -> None:
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


def _odd_size(header: bytes, path: Path, position: int) -> int:
    """A size that is padded, or in base 256, as GNU tar writes it from 8 GiB on; or this is no header."""
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        pass
    if position == 0:
        tool = next((tool for magic, tool in _COMPRESSED.items() if header.startswith(magic)), None)
        remedy = (
            f"it is compressed: unpack it with {tool} first, members are read by their place" if tool else ""
        )
        raise DatasetError(f"{path} is no tar file" + (f"; {remedy}" if remedy else "")) from None
    raise DatasetError(f"{path} is damaged: there is no header at byte {position}; download or copy it again")


def _check_sums(table: npt.NDArray[np.uint8], offsets: list[int], path: Path) -> None:
    """Every header has the sum of its bytes, its own field counted as spaces, in octal."""
    sums = table.sum(1, dtype=np.int64) - table[:, 148:156].sum(1, dtype=np.int64) + 8 * ord(" ")
    field = table[:, 148:154]
    digits = np.where((field >= ord("0")) & (field <= ord("7")), field - ord("0"), 0).astype(np.int64)
    stored = digits @ (8 ** np.arange(5, -1, -1))
    for index in np.flatnonzero(stored != sums).tolist():
        text = table[index, 148:156].tobytes().strip(b"\0 ")  # written in some other way, or wrong
        if not text.isdigit() or int(text, 8) != sums[index]:
            what = f"is damaged: the header at byte {offsets[index]} has a wrong checksum; download or copy it again"
            raise DatasetError(f"{path} {what if index else 'is no tar file'}")


def _names(table: npt.NDArray[np.uint8], overrides: dict[int, str]) -> list[str]:
    ends = table[:, :100].tobytes()
    names = [
        ends[at : at + 100].rstrip(b"\0").decode("utf-8", "surrogateescape")
        for at in range(0, len(ends), 100)
    ]
    # ustar keeps the beginning of a long path apart; GNU tar has other things in its place.
    ustar = (table[:, 257:263] == np.frombuffer(b"ustar\0", np.uint8)).all(1) & (table[:, 345] != 0)
    for index in np.flatnonzero(ustar).tolist():
        prefix = table[index, 345:500].tobytes().partition(b"\0")[0].decode("utf-8", "surrogateescape")
        names[index] = f"{prefix}/{names[index]}"
    for index, name in overrides.items():
        names[index] = name
    return names
