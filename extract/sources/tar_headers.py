"""Headers of a tar file one at a time: numbers, checksums, long names and pax records, none of which is trusted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache.store.errors import DatasetError

MAX_SPECIAL_BYTES = 2**20
"""Size limit of long names and pax records, which take a few hundred bytes; a forged size must not fill the memory."""
MAX_SPECIAL_IN_A_ROW = 64
"""Most special members in a row; a member has at most a name, a link and pax records before it."""
_OCTAL_NUMBER = re.compile(rb"[0-7]{1,12}")
_DECIMAL_NUMBER = re.compile(rb"[0-9]{1,18}")


def sum_is_right(header: bytes) -> bool:
    """Return whether a block has the checksum of a header."""
    stored = _OCTAL_NUMBER.fullmatch(header[148:156].strip(b"\0 "))
    return stored is not None and int(stored[0], 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def special_size(header: bytes, path: Path, position: int) -> int:
    """Return the bytes of a special member, which describes the next member.

    Raises:
        DatasetError: the member is too large, or of a type that cannot be read.
    """
    digits = _OCTAL_NUMBER.fullmatch(header[124:136].strip(b"\0 "))
    size = int(digits[0], 8) if digits else MAX_SPECIAL_BYTES + 1
    if size > MAX_SPECIAL_BYTES or header[156:157] in b"SVM":
        type_flag = chr(header[156])
        note = " (a sparse file)" if type_flag == "S" else ""
        raise DatasetError(
            f"{path}: a member of type {type_flag!r}{note} at byte {position} cannot be read; pack it again with tar"
        )
    return size


@dataclass
class Extended:
    """Overrides that special members give for the member behind them."""

    name: str | None = None
    size: int | None = None
    link: str | None = None
    count: int = 0

    def read(self, type_flag: bytes, content: bytes, path: Path, position: int) -> None:
        """Store a long name, a long link or pax records.

        Raises:
            DatasetError: the member cannot be read, or describes a sparse file, whose stored bytes are not its content.
        """
        self.count += 1
        if self.count > MAX_SPECIAL_IN_A_ROW:
            raise DatasetError(f"{path} is damaged: {self.count} long names in a row at byte {position}")
        if type_flag == b"L":
            self.name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif type_flag == b"K":
            self.link = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif type_flag == b"x":  # global records ("g") hold times and comments
            for field_name, value in _pax_records(content, path, position):
                self._take(field_name, value, path, position)

    def _take(self, field_name: bytes, value: bytes, path: Path, position: int) -> None:
        if field_name == b"path":
            self.name = value.decode("utf-8", "surrogateescape")
        elif field_name == b"linkpath":
            self.link = value.decode("utf-8", "surrogateescape")
        elif field_name.startswith((b"GNU.sparse", b"SCHILY.realsize")):
            raise DatasetError(
                f"{path}: the member behind byte {position} is a sparse file, whose content is not stored as it is; pack it "
                "again without --sparse"
            )
        elif field_name == b"size":
            if not _DECIMAL_NUMBER.fullmatch(value):
                raise DatasetError(f"{path} is damaged: size {value[:20]!r} in the header at byte {position}")
            self.size = int(value)


def _pax_records(content: bytes, path: Path, position: int) -> Iterator[tuple[bytes, bytes]]:
    while content and content[0]:
        head, _, rest = content.partition(b" ")
        length = int(head) if _DECIMAL_NUMBER.fullmatch(head) else 0
        name, separator, value = rest[: length - len(head) - 1].rstrip(b"\n").partition(b"=")
        if not len(head) < length <= len(content) or not separator:
            raise DatasetError(f"{path} is damaged: its extended header at byte {position} cannot be read")
        yield name, value
        content = content[length:]


def member_size(header: bytes, path: Path, position: int) -> int:
    """Return the size of a member: octal, padded or not, or in base 256, as GNU tar writes it from 8 GiB on.

    Raises:
        DatasetError: the block is no header, or the size is beyond any file.
    """
    field = header[124:136]
    if field[0] == 0x80:
        size = int.from_bytes(field[1:], "big")
        if size < 2**62:
            return size
        raise DatasetError(
            f"{path} is damaged: the member at byte {position} has {size:,} bytes; download or copy it again"
        )
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    if _OCTAL_NUMBER.fullmatch(digits):
        return int(digits, 8)
    if position == 0:
        raise DatasetError(f"{path} is no tar file")
    raise DatasetError(f"{path} is damaged: there is no header at byte {position}; download or copy it again")
