"""Broken caches: what one may find in a cache from elsewhere, and what featcache has to say about it.

Every entry is a change of a small valid cache (`support.forging`), and a phrase of the message that refuses it.
"""

import json
from dataclasses import dataclass

import numpy as np

from support.forging import (
    DROP,
    Change,
    array,
    both,
    content,
    forge_manifest,
    geometry,
    link,
    manifest,
    moved_out,
    raw,
    renamed,
    sparse,
    special,
    split,
    zarr_json,
)


@dataclass(frozen=True)
class Broken:
    """A broken cache."""

    change: Change
    message: str
    """Phrase of the error."""
    refused: str
    """What raises: ``open`` (and all else), ``read`` (gather, load or a column), ``provenance``, or only ``verify``."""
    found: str = ""
    """Phrase of the damage that verify reports, if it is another one."""


CHUNK = "features.zarr/train/norm2/c.0.1.0.0"
LABELS = "train/label/c.0"
NOT_JSON = "not valid JSON ("
LINK = "a link; a cache holds its files itself"
DEEP = "nested more than 32 levels deep"


def first(dtype: str, value: int):
    """Set the first value of a column."""

    def change(data: bytes) -> bytes:
        values = np.frombuffer(data, dtype).copy()
        values[0] = value
        return values.tobytes()

    return change


def twice(document: bytes) -> bytes:
    """The key twice: the first is another one."""
    return document.replace(b'"key": ', b'"key": "000000000000",\n "key": ', 1)


INVENTORY = {
    "shape of petabytes": (array("norm2", "shape", to=[2**40, 2, 2, 2**40]), "more than 2**48 elements"),
    "shape negative": (array("norm2", "shape", 0, to=-130), "'shape' must be a list of positive integers"),
    "shape zero": (array("norm2", "shape", 3, to=0), "'shape' must be a list of positive integers"),
    "shape beyond 2**63": (
        array("norm2", "shape", 0, to=2**63),
        "'shape' must be a list of positive integers",
    ),
    "shape beyond 2**200": (
        array("label", "shape", 0, to=2**200),
        "'shape' must be a list of positive integers",
    ),
    "shape in floats": (array("norm2", "shape", 0, to=130.0), "'shape' must be a list of positive integers"),
    "shape of truth": (array("final", "shape", 1, to=True), "'shape' must be a list of positive integers"),
    "shape in text": (array("norm2", "shape", 0, to="130"), "'shape' must be a list of positive integers"),
    "shape in lists": (array("norm2", "shape", 0, to=[130]), "'shape' must be a list of positive integers"),
    "shape empty": (array("norm2", "shape", to=[]), "'shape' must be a list of positive integers"),
    "shape missing": (array("norm2", "shape", to=DROP), "'shape' must be list, got NoneType"),
    "shape of three axes": (
        array("norm2", "shape", to=[130, 2, 2]),
        "'shape' [130, 2, 2] does not fit 2 tokens",
    ),
    "rows that disagree": (array("label", "shape", to=[131]), "'label' has 131 rows, the split has 130"),
    "no rows": (split("num_samples", to=0), "'num_samples' must be from 1 to 2**48, got 0"),
    "negative rows": (split("num_samples", to=-1), "'num_samples' must be from 1 to 2**48, got -1"),
    "rows beyond 2**63": (split("num_samples", to=2**63), "'num_samples' must be from 1 to 2**48"),
    "rows in floats": (split("num_samples", to=130.0), "'num_samples' must be int, got float"),
    "rows of truth": (split("num_samples", to=True), "'num_samples' must be int, got bool"),
    "endless blocks": (split("num_samples", to=2**40), "makes more than 2**17 blocks of 128 rows"),
    "odd block size": (split("block_rows", to=100), "'block_rows' must be a power of two from 128 to 4096"),
    "block size of 0": (split("block_rows", to=0), "'block_rows' must be a power of two from 128 to 4096"),
    "block size of 2**62": (
        split("block_rows", to=2**62),
        "'block_rows' must be a power of two from 128 to 4096",
    ),
    "a type that runs code": (array("norm2", "dtype", to="object"), "'dtype' must be one of float16"),
    "a type that is a number": (array("norm2", "dtype", to=7), "'dtype' must be str, got int"),
    "labels of NaN": (array("label", "dtype", to="float32"), "array 'label' must be there, int64"),
    "no labels": (split("arrays", "label", to=DROP), "array 'label' must be there, int64"),
    "no final layer": (split("arrays", "final", to=DROP), "array 'final' must be there"),
    "layers that do not fit": (array("norm2", "layers", to=["0"]), "'files' does not fit the inventory at"),
    "layers of numbers": (array("norm2", "layers", to=[0, 1]), "'layers' must be a list of strings"),
    "axes without names": (array("label", "dimension_names", to=[]), "'dimension_names' must have 1 entries"),
    "splits in a list": (manifest("inventory", "splits", to=[]), "'splits' must be dict, got list"),
    "class names in text": (
        manifest("inventory", "class_names", to="abc"),
        "'class_names' must be list, got str",
    ),
    "class names of numbers": (
        manifest("inventory", "class_names", to=[1, 2, 3]),
        "'class_names' must be a list of strings",
    ),
    "class names missing": (manifest("inventory", "class_names", to=DROP), "'class_names' must be list"),
    "array of another size": (
        array("sample_id", "shape", 1, to=13),
        "'train/sample_id/c.0.0' is recorded with 1536 bytes, must be 1664",
    ),
}
NAMES = (
    "..",
    ".",
    "",
    "/etc",
    "../../outside",
    "a/b",
    "a\\b",
    "a\0b",
    "é",
    "tr ain",
    "a" * 65,
    "a" * 100_000,
)
SPEC = {
    "format 0": (
        manifest("spec", "format_version", to=0),
        "format version 0; this featcache reads versions 2 and 3",
    ),
    "format 3 of 2": (
        manifest("spec", "format_version", to=3),
        "format version 3, but what the inventory holds has version 2",
    ),
    "format 4": (manifest("spec", "format_version", to=4), "format version 4; this featcache reads version"),
    "format 10**30": (manifest("spec", "format_version", to=10**30), f"format version {10**30}; this"),
    "format in text": (manifest("spec", "format_version", to="1"), "'format_version' must be int, got str"),
    "format of truth": (
        manifest("spec", "format_version", to=True),
        "'format_version' must be int, got bool",
    ),
    "format missing": (
        manifest("spec", "format_version", to=DROP),
        "'format_version' must be int, got NoneType",
    ),
    "spec missing": (manifest("spec", to=DROP), "'spec' must be dict, got NoneType"),
    "backbone missing": (manifest("spec", "backbone", to=DROP), "'backbone' must be dict, got NoneType"),
    "negative width": (manifest("spec", "backbone", "width", to=-8), "'width' must be from 1 to"),
    "2**63 layers": (manifest("spec", "backbone", "num_layers", to=2**63), "'num_layers' must be from 1 to"),
    "stored type": (
        manifest("spec", "dtype", to="float64"),
        "'dtype' must be one of float16, bfloat16, float32",
    ),
    "precision": (manifest("spec", "precision", to="double"), "'precision' must be one of fp32, mixed"),
    "another key": (manifest("key", to="0123456789ab"), "'key' is '0123456789ab', the spec's digest is"),
    "a field too many": (manifest("spec", "extra", to=1), "'key' is "),
}
RECORDS = {
    "blocks missing": (manifest("blocks", to=DROP), "'blocks' must be list, got NoneType"),
    "no blocks": (manifest("blocks", to=[]), "'blocks' lacks block 0 of 'train'"),
    "block of text": (manifest("blocks", 0, to="x"), "'blocks' must hold objects, got str"),
    "block 99": (manifest("blocks", 0, "block", to=99), "no such block in the inventory"),
    "block -1": (manifest("blocks", 0, "block", to=-1), "no such block in the inventory"),
    "block of no split": (manifest("blocks", 0, "split", to="../.."), "no such block in the inventory"),
    "other rows": (manifest("blocks", 0, "rows", to=[0, 2**63]), "the inventory says [0, 128]"),
    "file out of the cache": (
        renamed("blocks", 0, "files", LABELS, to="../../outside/secret"),
        "'files' does not fit the inventory at '../../outside/secret'",
    ),
    "absolute file": (renamed("blocks", 0, "files", LABELS, to="/etc/passwd"), "at '/etc/passwd'"),
    "file missing": (
        manifest("blocks", 0, "files", LABELS, to=DROP),
        "'files' does not fit the inventory at",
    ),
    "other size": (manifest("blocks", 0, "files", LABELS, "bytes", to=7), "with 7 bytes, must be 1024"),
    "size in floats": (
        manifest("blocks", 0, "files", LABELS, "bytes", to=1024.0),
        "'bytes' must be int, got float",
    ),
    "size of truth": (
        manifest("blocks", 0, "files", LABELS, "bytes", to=True),
        "'bytes' must be int, got bool",
    ),
    "no digest": (
        manifest("blocks", 0, "files", LABELS, "sha256", to=None),
        "'sha256' must be str, got NoneType",
    ),
    "metadata in a list": (manifest("metadata", to=[]), "'metadata' must be dict, got list"),
    "batch size in floats": (manifest("batch_size", to=32.0), "'batch_size' must be int, got float"),
    "batch size of truth": (manifest("batch_size", to=True), "'batch_size' must be int, got bool"),
}
JSON = {
    "empty": (b"", NOT_JSON),
    "truncated": (lambda data: data[: len(data) // 2], NOT_JSON),
    "cut by a byte of text": (lambda data: data[:-3], NOT_JSON),
    "zeros": (bytes(5000), NOT_JSON),
    "more behind it": (lambda data: data + b"{}", NOT_JSON),
    "a list": (b"[]", "must hold a JSON object, got list"),
    "a long text": (b'"' + b"a" * 2**22 + b'"', "must hold a JSON object, got str"),
    "null": (b"null", "must hold a JSON object, got NoneType"),
    "no UTF-8": (lambda data: data.replace(b"sha256", b"sha\xff\xfe6"), NOT_JSON + "'utf-8' codec"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), NOT_JSON),
    "byte order mark": (lambda data: b"\xef\xbb\xbf" + data, NOT_JSON),
    "half a character": (b'{"a": "\\ud800", "digest": "x"}', "'digest' does not match the content"),
    "lists in lists": (b'{"a":' + b"[" * 10**6, DEEP),
    "objects in objects": (b'{"a":' * 10**6, DEEP),
    "50 levels": (b'{"a":' * 50 + b"1" + b"}" * 50, DEEP),
    "1e999": (
        lambda data: data.replace(b'"batch_size": 32', b'"batch_size": 1e999'),
        "1e999 is not a finite number",
    ),
    "NaN": (
        lambda data: data.replace(b'"batch_size": 32', b'"batch_size": NaN'),
        "NaN is not a finite number",
    ),
    "5,000 digits": (lambda data: data.replace(b": 32", b": " + b"9" * 5000), NOT_JSON + "Exceeds the limit"),
    "4,000 digits": (lambda data: data.replace(b": 32", b": " + b"9" * 4000), "'digest' does not match"),
    "a field twice": (twice, "field 'key' appears twice"),
    "a hundred thousand fields, one twice": (
        b"{" + b",".join(b'"%d":1' % (n % (10**5 - 1)) for n in range(10**5)) + b"}",
        "field '0' appears twice",
    ),
    "3 MB of empty lists": (b'{"a": [' + b"[]," * (2**20 + 2**10) + b"[]]}", "more than 2097152 values"),
}
KINDS = {
    "a folder": (lambda name: special(name, "folder"), "not a regular file"),
    "a pipe": (lambda name: special(name, "pipe"), "not a regular file"),
    "a socket": (lambda name: special(name, "socket"), "cannot be read (No such device or address)"),
    "a link to itself": (lambda name: link(name, name.rpartition("/")[2]), LINK),
    "a link to nowhere": (lambda name: link(name, "../../nowhere"), LINK),
    "a link to a device without an end": (lambda name: link(name, "/dev/zero"), LINK),
    "a link out of the cache": (moved_out, LINK),
}
ZARR = {
    "big-endian": ("codecs", 0, "configuration", "endian", "big", "'codecs' is"),
    "no codec": ("codecs", [], "'codecs' is []"),
    "gzip": ("codecs", [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}], "'codecs' is"),
    "sharding": ("codecs", [{"name": "sharding_indexed", "configuration": {}}], "'codecs' is"),
    "a transposition": ("codecs", [{"name": "transpose", "configuration": {"order": "F"}}], "'codecs' is"),
    "codecs of text": ("codecs", "bytes", "'codecs' is 'bytes'"),
    "another chunk grid": ("chunk_grid", "name", "rectangular", "'chunk_grid' is"),
    "no chunk grid": ("chunk_grid", DROP, "'chunk_grid' must be dict, got NoneType"),
    "other chunks": ("chunk_grid", "configuration", "chunk_shape", 0, 64, "'chunk_grid' is"),
    "folders of chunks": ("chunk_key_encoding", "configuration", "separator", "/", "'chunk_key_encoding' is"),
    "chunk names of version 2": ("chunk_key_encoding", "name", "v2", "'chunk_key_encoding' is"),
    "version 2": ("zarr_format", 2, "'zarr_format' is 2"),
    "a group": ("node_type", "group", "'node_type' is 'group'"),
    "another type": ("data_type", "float32", "'data_type' is 'float32'"),
    "another fill value": ("fill_value", 0.0, "'fill_value' is 0.0"),
    "a shape of petabytes": ("shape", [2**40, 2, 2, 2**40], "'shape' is"),
    "a negative shape": ("shape", 0, -130, "'shape' is"),
    "other names of axes": ("dimension_names", 0, "a", "'dimension_names' is"),
}
# What the memory map does not rely on, but other readers do.
ZARR_FOR_OTHERS = {
    "another transformer": (
        "train/norm2",
        "storage_transformers",
        [{"name": "x"}],
        "'storage_transformers' is",
    ),
    "an unknown extension": ("train/norm2", "extra", {"name": "x"}, "'extra' is not one that a cache has"),
    "other layers": ("train/norm2", "attributes", "layers", 1, "7", "'attributes' is"),
    "other classes": ("train/label", "attributes", "class_names", 0, "x", "'attributes' is"),
    "a group of version 2": ("train", "zarr_format", 2, "'zarr_format' is 2"),
    "a root that is an array": ("", "node_type", "array", "'node_type' is 'array'"),
    "copies of text": ("", "consolidated_metadata", "x", "'consolidated_metadata' must be dict, got str"),
    "a list of copies": (
        "train",
        "consolidated_metadata",
        "metadata",
        [],
        "'metadata' must be dict, got list",
    ),
    "a copy of text": (
        "train",
        "consolidated_metadata",
        "metadata",
        "label",
        "x",
        "'label' must be dict, got str",
    ),
    "a copy too few": (
        "",
        "consolidated_metadata",
        "metadata",
        "train/label",
        DROP,
        "'train/label' is in only one",
    ),
    "a copy too many": ("", "consolidated_metadata", "metadata", "../x", {}, "'../x' is in only one"),
    "a copy of another shape": (
        *("train", "consolidated_metadata", "metadata", "label", "shape", [2**62]),
        "copy of 'label': field 'shape' is [4611686018427387904]",
    ),
    "copies that differ by number alone": (
        *("", "consolidated_metadata", "metadata", "train/label", "shape", [130.0]),
        "'shape' is [130.0]",
    ),
}


def _cases() -> dict[str, Broken]:
    cases = {
        f"manifest: {name}": Broken(change, message, "open")
        for table in (INVENTORY, SPEC, RECORDS)
        for name, (change, message) in table.items()
    }
    for name in NAMES:
        shown = name if len(name) < 70 else "endless"
        renamings = {
            "split": renamed("inventory", "splits", "train", to=name),
            "array": renamed("inventory", "splits", "train", "arrays", "norm2", to=name),
        }
        for what, change in renamings.items():
            cases[f"manifest: {what} named {shown!r}"] = Broken(change, "is not a valid name", "open")
    for name, (data, message) in JSON.items():
        cases[f"manifest.json: {name}"] = Broken(raw("manifest.json", data), message, "open")
    cases["manifest.json: 300 MB of nothing"] = Broken(
        sparse("manifest.json", 3 * 10**8), "is more than", "open"
    )
    for name, (kind, message) in KINDS.items():
        found = "not a regular file" if name == "a socket" else ""
        cases[f"manifest.json: {name}"] = Broken(kind("manifest.json"), message, "open")
        for file in (
            CHUNK,
            f"features.zarr/{LABELS}",
            "features.zarr/train/norm2/zarr.json",
            "provenance.json",
        ):
            refused = "provenance" if file == "provenance.json" else "read"
            cases[f"{file}: {name}"] = Broken(kind(file), message, refused, found)
        for file in ("README.md", "request.json", "features.zarr/train/zarr.json"):
            cases[f"{file}: {name}"] = Broken(kind(file), found or message, "verify")
    for name in (
        "features.zarr",
        "features.zarr/train",
        "features.zarr/train/norm2",
        "features.zarr/train/label",
    ):
        cases[f"{name}: a link out of the cache"] = Broken(moved_out(name), LINK, "read")
    for name, (*spot, value, message) in ZARR.items():
        change = zarr_json("train/norm2", *spot, to=value)
        cases[f"zarr.json: {name}"] = Broken(change, f"field {message}", "read")
    for name, (node, *spot, value, message) in ZARR_FOR_OTHERS.items():
        cases[f"zarr.json: {name}"] = Broken(zarr_json(node, *spot, to=value), message, "verify")
    return cases | OTHERS | BEYOND_FIELDS


OTHERS = {
    "a deep zarr.json": Broken(content("train/norm2/zarr.json", lambda _: b'{"a":' * 10**5), DEEP, "read"),
    "a cut zarr.json": Broken(content("train/norm2/zarr.json", lambda data: data[:99]), NOT_JSON, "read"),
    "a zarr.json of 300 MB": Broken(
        sparse("features.zarr/train/norm2/zarr.json", 3 * 10**8), "is more than", "read", "must be"
    ),
    "a missing zarr.json": Broken(
        lambda cache: (cache / CHUNK).with_name("zarr.json").unlink(), "missing", "read"
    ),
    "a cut chunk": Broken(sparse(CHUNK, 4095), "4095 bytes, must be 4096", "read"),
    "a long chunk": Broken(sparse(CHUNK, 2**33), "8589934592 bytes, must be 4096", "read"),
    "a missing chunk": Broken(lambda cache: (cache / CHUNK).unlink(), "missing", "read"),
    "a forged chunk": Broken(
        raw(CHUNK, lambda data: data[::-1]), "content does not match its SHA-256", "verify"
    ),
    "gigabytes of features": Broken(
        both(
            geometry("norm2", 3, 2**20, ("train", "test")),
            geometry("final", 3, 2**20, ("train", "test")),
            manifest("spec", "backbone", "width", to=2**20),
        ),
        "4096 bytes, must be 536870912",
        "read",
    ),
    "longer ids": Broken(geometry("sample_id", 1, 12 * 2**12), "1536 bytes, must be 6291456", "read"),
    "terabytes of ids": Broken(geometry("sample_id", 1, 12 * 2**32), "has ids of 51539607552 bytes", "open"),
    "arrays of two widths": Broken(
        geometry("norm2", 3, 16), "array 'norm2': its width is 16, the spec's field 'width' 8", "open"
    ),
    "a label beyond the classes": Broken(
        content(LABELS, first("<i8", 3)), "row 0 has label 3, there are 3 class names", "read"
    ),
    "a label of 2**62": Broken(content(LABELS, first("<i8", 2**62)), f"row 0 has label {2**62}", "read"),
    "a negative label": Broken(content(LABELS, first("<i8", -1)), "row 0 has label -1", "read"),
    "too few classes": Broken(
        manifest("inventory", "class_names", to=["a", "b"]),
        "row 2 has label 2, there are 2 class names",
        "read",
    ),
    "a truth value of 2": Broken(
        content("train/valid/c.0", first("u1", 2)), "row 0 has byte 2, must be 0 or 1", "read"
    ),
    "an id that is no text": Broken(
        content("train/sample_id/c.0.0", first("u1", 0xFF)), "row 0 has an id that is not UTF-8", "read"
    ),
    "a file in the metadata's table": Broken(
        manifest("metadata", "../../outside/secret", to={"bytes": 1, "sha256": ""}),
        "'metadata' does not fit the inventory at '../../outside/secret'",
        "verify",
    ),
    "deep provenance": Broken(raw("provenance.json", b'{"a":' * 600 + b"1" + b"}" * 600), DEEP, "provenance"),
    "missing provenance": Broken(lambda cache: (cache / "provenance.json").unlink(), "missing", "verify"),
    "forged provenance": Broken(
        raw("provenance.json", b"{}"), "'digest' does not match the content", "provenance"
    ),
    "a journal elsewhere": Broken(link("journal", "../outside"), LINK, "verify"),
    "a journal that is a file": Broken(raw("journal", b"x"), "left by a process that was killed", "verify"),
    "a strange file with control characters": Broken(
        raw("\x1b[2J\udcff", b""), "does not belong in a cache", "verify"
    ),
    "a card of a terabyte": Broken(sparse("README.md", 2**40), "is more than a card may have", "verify"),
    "a temporary file that is a link to itself": Broken(
        link("README.md.partial", "README.md.partial"), "left by a process that was killed", "verify"
    ),
    "a strange link": Broken(link("secret", "../outside/secret"), "does not belong in a cache", "verify"),
    "a link under a temporary name": Broken(
        both(
            link("provenance.json.partial", "../outside/secret"),
            raw("provenance.json", lambda data: data + b"\n"),
        ),
        "its bytes are not as written",
        "verify",
    ),
    "a pipe under a temporary name": Broken(
        both(special("provenance.json.partial", "pipe"), raw("provenance.json", lambda data: data + b"\n")),
        "its bytes are not as written",
        "verify",
    ),
}


def tokens(*names: str) -> Change:
    """Set the token kinds of both arrays of features."""
    return both(array("norm2", "tokens", to=list(names)), array("final", "tokens", to=list(names)))


def more_splits(count: int) -> Change:
    """Splits of 2**17 blocks each, which take no room in the manifest."""

    def change(document: dict) -> None:
        splits = document["inventory"]["splits"]
        for number in range(count):
            splits[f"s{number}"] = inner = json.loads(json.dumps(splits["train"]))
            inner["num_samples"] = 2**24
            for entry in inner["arrays"].values():
                entry["shape"][0] = 2**24

    return lambda cache: forge_manifest(cache, change)


BEYOND_FIELDS = {
    **{
        f"batch size {size}": Broken(manifest("batch_size", to=size), "'batch_size'", "open")
        for size in (0, -1, 10**30)
    },
    "another program's manifest": Broken(
        manifest("format", to="other"), "'format' must be 'featcache'", "open"
    ),
    "a layer with a path": Broken(array("norm2", "layers", to=["0", "../x"]), "'layers'", "open"),
    "a layer that the backbone lacks": Broken(array("norm2", "layers", to=["0", "7"]), "'layers'", "open"),
    "a layer twice": Broken(array("norm2", "layers", to=["0", "0"]), "'layers'", "open"),
    "layers out of order": Broken(array("norm2", "layers", to=["1", "0"]), "'layers'", "open"),
    "a layer of a million digits": Broken(
        array("norm2", "layers", to=["0", "9" * 10**6]), "'layers'", "open"
    ),
    "a token kind with a path": Broken(tokens("cls", "../x"), "'tokens'", "open"),
    "a token kind twice": Broken(tokens("cls", "cls"), "'tokens'", "open"),
    "a class name with a zero": Broken(
        manifest("inventory", "class_names", to=["a", "b", "c\0"]), "control characters", "open"
    ),
    "a projection of three axes": Broken(
        manifest("inventory", "projection", to=[2, 2, 2]), "'projection'", "open"
    ),
    "a huge projection": Broken(manifest("inventory", "projection", to=[2**40, 2]), "'projection'", "open"),
    "a projection without files": Broken(
        manifest("inventory", "projection", to=[2, 2]), "'metadata' does not fit the inventory", "verify"
    ),
    "two types": Broken(
        both(array("norm2", "dtype", to="bfloat16"), array("final", "dtype", to="bfloat16")),
        "'dtype'",
        "open",
    ),
    "a tap without layers": Broken(
        both(
            both(array("norm2", "shape", to=[130]), array("norm2", "dimension_names", to=["sample"])),
            both(array("norm2", "layers", to=[]), array("norm2", "tokens", to=[])),
        ),
        "array 'norm2': field 'layers' is empty",
        "open",
    ),
    "two widths": Broken(manifest("spec", "backbone", "width", to=9), "'width'", "open"),
    "two depths": Broken(manifest("spec", "backbone", "num_layers", to=9), "'shape' has 2 layers", "open"),
    "ids of a gigabyte": Broken(geometry("sample_id", 1, 12 * 2**26), "'sample_id'", "open"),
    "a block twice": Broken(
        lambda cache: forge_manifest(
            cache, lambda document: document["blocks"].append(document["blocks"][0])
        ),
        "block 0 of 'train'",
        "open",
    ),
    "two splits of 2**17 blocks": Broken(more_splits(2), "2**17 blocks", "open"),
    "zarr.json: a shape in floats": Broken(
        zarr_json("train/norm2", "shape", 0, to=130.0), "'shape' is", "read"
    ),
}
BROKEN_CACHES = _cases()
