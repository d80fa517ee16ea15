"""Small text files beside a dataset, such as lists of class names."""

from pathlib import Path

from featcache.extraction.sources.image_tree import refuse_irregular
from featcache.store.errors import DatasetError

MAX_TEXT_BYTES = 2**26


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file in UTF-8, without white space around them and without empty lines at the end.

    Lines end as in an editor. `str.splitlines` would also split at U+2028 and form feeds, and so shift the numbers of
    all following lines.

    Raises:
        DatasetError: the file cannot be read, is no regular file, is not UTF-8 or is too large.
    """
    try:
        state = path.stat()
        refuse_irregular(state.st_mode, path)
        if state.st_size > MAX_TEXT_BYTES:
            raise DatasetError(f"{path} has {state.st_size:,} bytes; is it a list of names?")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
