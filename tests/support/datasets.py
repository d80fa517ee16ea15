"""Small datasets in every form, all of the same images: row r of a split has one color that tells split and row."""

import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
SIZES = {"train": 10, "test": 5}
SIDE = 6


def color(split: str, row: int) -> tuple[int, int, int]:
    """What image `row` of a split looks like."""
    return (200 if split == "train" else 50, 10 * row, 77)


def pixels(split: str) -> np.ndarray:
    """All images of a split: uint8 ``[N, 6, 6, 3]``."""
    colors = np.array([color(split, row) for row in range(SIZES[split])], np.uint8)
    return np.broadcast_to(colors[:, None, None], (len(colors), SIDE, SIDE, 3)).copy()


def labels(split: str) -> np.ndarray:
    """Classes of a split, sorted as in many shards: int64 ``[N]``."""
    return np.arange(SIZES[split]) * len(CLASSES) // SIZES[split]


def encoded(image: np.ndarray, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"lossless": True} if form == "webp" else {}))
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard_members(split: str, rows: Sequence[int], form: str = "png") -> list[tuple[str, bytes]]:
    images, classes = pixels(split), labels(split)
    return [
        member
        for row in rows
        for member in (
            (f"s{row:07d}.{form}", encoded(images[row], form)),
            (f"s{row:07d}.cls", str(classes[row]).encode()),
        )
    ]


def make_shards(
    folder: Path, counts: Mapping[str, int] | None = None, forms: Sequence[str] = ("webp", "png")
) -> Path:
    """As on the Hub: ``train/0.tar``, ``nshards.txt``, ``classnames.txt``; shards of unlike sizes."""
    for split, count in (counts or {"train": 3, "test": 2}).items():
        ends = [0, *(2 * number + 1 for number in range(1, count)), SIZES[split]]
        for number in range(count):
            rows = range(ends[number], ends[number + 1])
            members = shard_members(split, rows, forms[number % len(forms)])
            write_tar(folder / split / f"{number}.tar", members)
        (folder / split / "nshards.txt").write_text(f"{count}\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def make_folder(folder: Path) -> Path:
    """``train/<class>/<row>.png``."""
    for split in SIZES:
        for row, (image, label) in enumerate(zip(pixels(split), labels(split), strict=True)):
            path = folder / split / CLASSES[label] / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    return folder


def make_pcam(folder: Path, *, packed: bool = False, **options: Any) -> Path:
    """A file of images and one of labels ``[N, 1, 1, 1]`` for every split, as PCAM has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        for what, values in (("x", pixels(split)), ("y", labels(split).reshape(-1, 1, 1, 1))):
            path = folder / f"camelyon_{split}_{what}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset(what, data=values, **(options if what == "x" else {}))
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
    return folder


def idx_bytes(values: np.ndarray) -> bytes:
    return (
        struct.pack(">BBBB", 0, 0, 8, values.ndim)
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def make_idx(folder: Path, packed: bool = False) -> Path:
    """MNIST's four files; grayscale, so images are their second channel."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        for what, values in (
            ("images-idx3", pixels(split)[..., 1].copy()),
            ("labels-idx1", labels(split).astype(np.uint8)),
        ):
            content = idx_bytes(values)
            path = folder / f"{name}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def make_npz(path: Path) -> Path:
    """As MedMNIST has it: ``train_images``, ``train_labels [N, 1]``, ..."""
    arrays = {f"{split}_images": pixels(split) for split in SIZES}
    arrays |= {f"{split}_labels": labels(split)[:, None] for split in SIZES}
    np.savez(path, **arrays)
    return path


def make_csv(path: Path, columns: Mapping[str, Callable[[str, int], object]] | None = None) -> Path:
    """A table of the images of `make_folder`, which is made beside it."""
    folder = make_folder(path.parent / "images")
    columns = columns or {"label": lambda split, row: CLASSES[labels(split)[row]]}
    lines = [",".join(("path", "split", *columns))]
    for split in SIZES:
        for row in range(SIZES[split]):
            image = f"images/{split}/{CLASSES[labels(split)[row]]}/{row:02d}.png"
            assert (folder.parent / image).is_file()
            lines.append(",".join((image, split, *(str(value(split, row)) for value in columns.values()))))
    path.write_text("\n".join(lines) + "\n")
    return path


def make_parquet(folder: Path, *, row_group_size: int = 4, noted: bool = True) -> Path:
    """As the library `datasets` writes them: ``data/train-00000-of-00002.parquet``."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Insects\n")
    info = {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
        }
    }
    for split in SIZES:
        images, classes = pixels(split), labels(split)
        files = 2 if split == "train" else 1
        for number, rows in enumerate(np.array_split(np.arange(len(classes)), files)):
            table = pa.table(
                {
                    "image": [{"bytes": encoded(images[row]), "path": f"{row}.png"} for row in rows],
                    "label": pa.array(classes[rows]),
                    "patient": [f"p{row // 2}" for row in rows],
                }
            )
            if noted:
                table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
            path = folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
            pq.write_table(table, path, row_group_size=row_group_size)
    return folder


class Items:
    """A sequence of (image, target) for one split; picklable."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels(self.split)[row]), int(labels(self.split)[row])
