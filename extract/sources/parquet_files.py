"""Open parquet files of any origin, and check their declared sizes before columns are read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.store.errors import DatasetError, FeatcacheError, UnknownNameError
from featcache.store.machine import available_memory
from featcache.store.targets import names_problem, too_many_names
from featcache.store.text import reason

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

UNPACKED_BYTES = 2**30
"""Bytes that every row group may unpack to."""


def open_parquet(path: Path) -> "pq.ParquetFile":
    """Open a parquet file.

    Raises:
        DatasetError: the file is no parquet file.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DatasetError(f"{path} cannot be read as parquet (it is no regular file)")
    with parquet_errors(path):
        file = pq.ParquetFile(path)
    # An image takes at least one byte, which bounds the rows; all rows are enumerated.
    if file.metadata.num_rows > path.stat().st_size:
        raise DatasetError(
            f"{path} says that it has {file.metadata.num_rows} rows, more than bytes; it is damaged"
        )
    return file


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn any error that pyarrow raises for a damaged file into a `DatasetError` that names the file."""
    import pyarrow as pa

    try:
        yield
    except FeatcacheError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise DatasetError(f"{path} cannot be read as parquet ({reason(error)})") from error


def check_images(schema: "pa.Schema", name: str, path: Path) -> None:
    """Refuse a column that holds no image files, before any row of it is read."""
    import pyarrow as pa

    if name not in schema.names:
        raise UnknownNameError("column", name, schema.names, f"({path})")
    column_type = schema.field(name).type
    inner = (
        column_type.field("bytes").type
        if pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0
        else column_type
    )
    holds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(test(inner) for test in holds) or (inner is not column_type and pa.types.is_null(inner)):
        return
    hint = (
        "; one image a row can be read, so give every image a row of its own"
        if pa.types.is_list(column_type)
        else ""
    )
    raise DatasetError(
        f"{path}: column {name!r} is {str(column_type)[:100]}; images must be the bytes of their files, or a struct with a field "
        f"bytes{hint}"
    )


def check_group(file: "pq.ParquetFile", group: int, name: str, path: Path) -> None:
    """Refuse images whose declared unpacked size exceeds the memory."""
    metadata = file.metadata.row_group(group)
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        if column.path_in_schema.split(".")[0] != name:
            continue
        if column.total_uncompressed_size > max(UNPACKED_BYTES, available_memory()):
            raise DatasetError(
                f"{path}: row group {group} of column {name!r} unpacks to {column.total_uncompressed_size} bytes, more than the "
                "memory; write it with smaller row groups"
            )


def class_names(file: "pq.ParquetFile", column: str, path: Path) -> list[str]:
    """Return the class names that the library `datasets` recorded.

    Raises:
        DatasetError: the names are not a list of texts.
    """
    metadata = file.schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return []
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"{path}: the names of the classes of {column!r} in its metadata are no list of texts"
        )
    problem = names_problem(names) or too_many_names(names)
    if problem:
        raise DatasetError(f"{path}: {problem}")
    return names
