"""Index of the members of a tar file, so that any member can be read without the rest.

The headers are walked in windows, at the speed at which the disk reads ahead; what can be checked for all of them at once
(checksums, types, names) is checked with numpy. Formats: POSIX.1-2001 (pax), ustar and GNU, as `tarfile` and GNU tar
write them. https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Rows
from featcache.extraction.sources.tar_headers import Extended, member_size, special_size, sum_is_right
from featcache.store.errors import DatasetError

Bytes = npt.NDArray[np.uint8]

BLOCK = 512
WINDOW_BYTES = 2**20
SPARSE_WINDOW_BYTES = 4096
"""Window for files of large members, where reading ahead would read all of them."""
SPARSE_MEMBER_BYTES = 256 * 2**10
MAX_BEHIND_BYTES = 2**20
"""Bytes behind the end that are searched for another archive; tar pads to blocks of at most this size."""

_FILES = b"0\0007"
LINKS_LEFT_OUT = "links to files that are not in the shard"
_LINKS = b"12"
_WITHOUT_CONTENT = b"23456"
"""Links, devices, folders and pipes; some programs write a meaningless size for these types."""
_LINK_HOPS = 8
_SPECIAL = b"xgLKSVM"
_SPECIAL_FLAGS = tuple(bytes([type_flag]) for type_flag in _SPECIAL)
_MAGIC = b"ustar"
_OCTAL = 8 ** np.arange(10, -1, -1)
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
    b"PK\x03\x04": "unzip",
}


@dataclass(frozen=True)
class TarIndex:
    """M regular files in a tar file, in its order; a link to one of them is a file with the same content."""

    names: list[str]
    offsets: Rows
    """Offset of the content, ``[M]``."""
    sizes: Rows
    """Bytes of the content, ``[M]``."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of members without readable content of their own, by type; folders are not counted."""


@dataclass
class _Headers:
    """Headers of some members in a row."""

    table: Bytes
    """``[M, 512]``."""
    offsets: Rows
    sizes: Rows
    next: int
    """Offset of the next header."""
    names: dict[int, str]
    """Names that stand in a member of their own, by position."""
    links: dict[int, str] = field(default_factory=dict)
    """Link targets that stand in a special member, by position."""
    ended: bool = False
    """Whether the end of the archive follows."""


def index_tar(path: Path) -> TarIndex:
    """Find all regular files of a tar file.

    Raises:
        DatasetError: it is no tar file, compressed, damaged or truncated; the message says where.
    """
    with path.open("rb", buffering=0) as file:
        _refuse_compressed(file.fileno(), path)
        runs = list(_walk(file, os.fstat(file.fileno()).st_size, path))
    names: list[str] = []
    links: dict[int, str] = {}
    for run in runs:
        _check_sums(run, path)
        links |= {len(names) + index: target for index, target in _link_targets(run).items()}
        names += _names(run)
    if not names:
        return TarIndex([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    offsets, sizes = (np.concatenate([getattr(run, name) for run in runs]) for name in ("offsets", "sizes"))
    types = np.concatenate([run.table[:, 156] for run in runs])
    plain = np.isin(types, np.frombuffer(_FILES, np.uint8))
    if plain.all():
        return TarIndex(names, offsets + BLOCK, sizes)
    left_out = _follow_links(names, links, plain, offsets, sizes)
    for type_flag in types[~plain].tolist():
        if type_flag not in _LINKS and chr(type_flag) != "5":
            left_out["devices, pipes and other special members"] += 1
    names = [name for name, kept in zip(names, plain.tolist(), strict=True) if kept]
    return TarIndex(names, offsets[plain] + BLOCK, sizes[plain], dict(left_out))


def _link_targets(run: _Headers) -> dict[int, str]:
    """Return the target of every link of a run as written, by position; a leading slash marks a hard link."""
    targets = {}
    for index in np.flatnonzero(np.isin(run.table[:, 156], np.frombuffer(_LINKS, np.uint8))).tolist():
        stored = run.table[index, 157:257].tobytes().partition(b"\0")[0].decode("utf-8", "surrogateescape")
        target = run.links.get(index, stored)
        targets[index] = f"//{target}" if run.table[index, 156] == ord("1") else target
    return targets


def _follow_links(
    names: list[str], links: dict[int, str], plain: npt.NDArray[np.bool_], offsets: Rows, sizes: Rows
) -> Counter[str]:
    """Give every link to a file of the archive the offset of that file; return the number of other links.

    A hard link names a member by its name, a symbolic one by a path from its own folder.
    """
    left_out: Counter[str] = Counter()
    # If two members share a name, extraction keeps the last one.
    files = {
        posixpath.normpath(name): index for index, name in enumerate(names) if plain[index] or index in links
    }
    for index, target in links.items():
        here, hops = index, 0
        while here in links and hops < _LINK_HOPS:
            target, hard = links[here].removeprefix("//"), links[here].startswith("//")
            base = "" if hard else posixpath.dirname(names[here])
            here, hops = files.get(posixpath.normpath(posixpath.join(base, target)), -1), hops + 1
        if here >= 0 and here not in links:
            offsets[index], sizes[index] = offsets[here], sizes[here]
            plain[index] = True
        else:
            left_out[LINKS_LEFT_OUT] += 1
    return left_out


def _refuse_compressed(descriptor: int, path: Path) -> None:
    head = os.pread(descriptor, 8, 0)
    tool = next((tool for magic, tool in _COMPRESSED.items() if head.startswith(magic)), None)
    if tool:
        raise DatasetError(
            f"{path} is no tar file; it is compressed: unpack it with {tool} first, members are read by their place"
        )


def _walk(file: FileIO, total: int, path: Path) -> Iterator[_Headers]:
    """Yield the headers of all members, a window at a time."""
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
        run = _scan_regular_run(blocks, position) if length == WINDOW_BYTES else None
        run = run or _scan_one_by_one(blocks, position, file.fileno(), path)
        yield run
        if run.next > total:
            _refuse_truncated(path, total, run.next)
        if run.ended:
            _refuse_more_behind(file.fileno(), run.next, path)
            return
        position, members = run.next, members + len(run.offsets)
        if position > max(members, 1) * SPARSE_MEMBER_BYTES:
            length = SPARSE_WINDOW_BYTES
    # An end without an empty block is what a copy that broke off at a member's edge looks like.
    _refuse_truncated(path, total, position + 2 * BLOCK)


def _refuse_more_behind(descriptor: int, end: int, path: Path) -> None:
    """Refuse concatenated archives: readers stop at the first end, so samples would be lost."""
    behind = os.pread(descriptor, MAX_BEHIND_BYTES, end)
    for start in range(0, len(behind) - BLOCK + 1, BLOCK):
        header = behind[start : start + BLOCK]
        if header.strip(b"\0"):
            if header[257:262] == _MAGIC and sum_is_right(header):
                raise DatasetError(
                    f"{path} has more members behind its end, at byte {end + start}: are these tar files joined with cat? Join "
                    "them with tar --concatenate, or keep them apart"
                )
            return


def _scan_regular_run(blocks: Bytes, start: int) -> _Headers | None:
    """Return the headers found all at once: every block with the magic, if their sizes lead from each to the next.

    None if they do not, since content can look like a header, or if there is one of another kind.
    """
    magic = blocks[:, 257] == _MAGIC[0]
    for place, value in enumerate(_MAGIC[1:], 258):
        magic &= blocks[:, place] == value
    indices = np.flatnonzero(magic)
    if not len(indices) or indices[0] != 0:
        return None
    table = blocks[indices]
    digits = table[:, 124:135].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or np.isin(table[:, 156], np.frombuffer(_SPECIAL, np.uint8)).any():
        return None
    sizes = digits @ _OCTAL
    behind = indices + 1 + -(-sizes // BLOCK)
    if (behind[:-1] != indices[1:]).any():
        return None
    # What follows the last one within the window has no magic: the end, which the next window tells.
    return _Headers(table, start + indices * BLOCK, sizes, start + int(behind[-1]) * BLOCK, {})


def _scan_one_by_one(blocks: Bytes, start: int, descriptor: int, path: Path) -> _Headers:
    """Return headers of all kinds, each found by the header before; at least the first of the window."""
    positions: list[int] = []
    sizes: list[int] = []
    names: dict[int, str] = {}
    links: dict[int, str] = {}
    told = Extended()
    at, last = 0, 0
    while at < len(blocks):
        header, position = blocks[at].tobytes(), start + at * BLOCK
        if header[156:157] in _SPECIAL_FLAGS:
            size = special_size(header, path, position)
            content = os.pread(descriptor, size, position + BLOCK)
            if len(content) < size:
                _refuse_truncated(path, position + BLOCK + len(content), position + BLOCK + size)
            told.read(header[156:157], content, path, position)
            behind = at + 1 + -(-size // BLOCK)
            if behind >= len(blocks) and not positions:
                # What it is about is in the next window, which then has to begin here.
                blocks = _longer(descriptor, start, behind + 1, path)
            at = behind
            continue
        if not header.rstrip(b"\0"):
            return _headers(blocks, start, positions, sizes, start + at * BLOCK, names, links, ended=True)
        size = member_size(header, path, position) if told.size is None else told.size
        if header[156] in _WITHOUT_CONTENT or (
            header[156] == ord("1") and _has_no_content(descriptor, position)
        ):
            size = 0
        if told.count:
            if told.name is not None:
                names[len(positions)] = told.name
            if told.link is not None:
                links[len(positions)] = told.link
            told = Extended()
        positions.append(at)
        sizes.append(size)
        at = last = at + 1 + -(-size // BLOCK)
    # Long names at the very end belong to what follows, and are read again with it.
    return _headers(blocks, start, positions, sizes, start + last * BLOCK, names, links)


def _has_no_content(descriptor: int, position: int) -> bool:
    """Return whether a hard link has no data, since some programs write the size of its target into the header."""
    behind = os.pread(descriptor, BLOCK, position + BLOCK)
    return not behind.strip(b"\0") or (behind[257:262] == _MAGIC and sum_is_right(behind))


def _longer(descriptor: int, start: int, count: int, path: Path) -> Bytes:
    window = os.pread(descriptor, count * BLOCK, start)
    if len(window) < count * BLOCK:
        _refuse_truncated(path, start + len(window), start + (count + 2) * BLOCK)
    return np.frombuffer(window, np.uint8).reshape(-1, BLOCK)


def _headers(
    blocks: Bytes,
    start: int,
    positions: list[int],
    sizes: list[int],
    behind: int,
    names: dict[int, str],
    links: dict[int, str],
    *,
    ended: bool = False,
) -> _Headers:
    indices = np.array(positions, np.int64)
    return _Headers(
        blocks[indices], start + indices * BLOCK, np.array(sizes, np.int64), behind, names, links, ended
    )


def _refuse_truncated(path: Path, total: int, needed: int) -> NoReturn:
    raise DatasetError(
        f"{path} is truncated: {total} bytes, there must be at least {needed}; download or copy it again"
    )


def _check_sums(run: _Headers, path: Path) -> None:
    """Check the checksum of every header: the sum of its bytes, its own field counted as spaces, in octal."""
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
        names = b"\0".join(field.partition(b"\0")[0] for field in stored)
    texts = names.decode("utf-8", "surrogateescape").split("\0")
    # ustar keeps the beginning of a long path apart; GNU tar has other things in its place.
    ustar = (run.table[:, 257:263] == np.frombuffer(b"ustar\0", np.uint8)).all(1) & (run.table[:, 345] != 0)
    for index in np.flatnonzero(ustar).tolist():
        prefix = run.table[index, 345:500].tobytes().partition(b"\0")[0].decode("utf-8", "surrogateescape")
        texts[index] = f"{prefix}/{texts[index]}"
    for index, name in run.names.items():
        texts[index] = name
    return texts
