"""Images, tables and weights that are the same to the byte on every machine and with every version of every library.

Random numbers come from numpy's legacy generator, whose streams never change, and images are uncompressed.
"""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = "timm:test_vit.r160_in1k"
CLASSES = ("ash", "birch")
SIDE = 12
REGRESSION, MULTI_LABEL = "regression", "multi-label"
"""Names of the two tables whose targets are not classes; they are read with ``--target`` of the same name."""
ROWS = {"train": 132, "test": 12}
"""The train split fills one block of 128 rows and begins another."""


def pixels(split: str) -> np.ndarray:
    """Return the images of a split: uint8 ``[N, 12, 12, 3]``, noise around a color of each class."""
    rng = np.random.RandomState(len(split))
    values = rng.normal(90 + 70 * labels(split)[:, None, None, None], 40, (ROWS[split], SIDE, SIDE, 3))
    return values.clip(0, 255).astype(np.uint8)


def labels(split: str) -> np.ndarray:
    """Return the class of every image of a split, ``[N]``."""
    return np.arange(ROWS[split]) % len(CLASSES)


def write_weights(path: Path) -> Path:
    """Write weights for timm's smallest vision transformer (6 blocks of width 64, 160 px)."""
    import timm
    import torch
    from safetensors.torch import save_file

    rng = np.random.RandomState(0)
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    for name in sorted(state):
        values = rng.normal(1.0 if name.endswith("norm.weight") else 0.0, 0.1, tuple(state[name].shape))
        state[name] = torch.from_numpy(values.astype(np.float32))
    save_file(state, path)
    return path


def write_folder(directory: Path) -> Path:
    """Write ``<split>/<class>/<row>.bmp``."""
    for split in ROWS:
        for row, (image, label) in enumerate(zip(pixels(split), labels(split), strict=True)):
            path = directory / split / CLASSES[label] / f"{row:03d}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_bmp(image))
    return directory


def write_table(path: Path, columns: dict[str, list[str]]) -> Path:
    """Write a CSV of the images that `write_folder` put beside it, with more columns: one value per train and test row."""
    names = [(split, row) for split in ROWS for row in range(ROWS[split])]
    lines = [",".join(("path", "split", *columns))]
    for index, (split, row) in enumerate(names):
        image = f"folder/{split}/{CLASSES[labels(split)[row]]}/{row:03d}.bmp"
        lines.append(",".join((image, split, *(values[index] for values in columns.values()))))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_all(directory: Path) -> dict[str, str]:
    """Write the same images in several forms below `directory`; return ``--dataset`` for each form."""
    directory.mkdir(parents=True, exist_ok=True)
    write_folder(directory / "folder")
    every = [label for split in ROWS for label in labels(split)]
    write_table(directory / "classes.csv", {"label": [CLASSES[label] for label in every]})
    heights = [f"{2 * label + row / 100:.2f}" for row, label in enumerate(every)]
    write_table(directory / "heights.csv", {"height [m]": heights})
    marks = {
        "bright": [str(label) for label in every],
        "even": [str(1 - row % 2) for row in range(len(every))],
    }
    write_table(directory / "marks.csv", marks)
    arrays = {f"{split}_images": pixels(split) for split in ROWS}
    np.savez(directory / "arrays.npz", **arrays, **{f"{split}_labels": labels(split) for split in ROWS})
    _write_hdf5(directory / "arrays.h5")
    _write_idx(directory / "idx")
    _write_shards(directory / "shards")
    return {
        "imagefolder": f"imagefolder:{directory / 'folder'}",
        "csv": f"csv:{directory / 'classes.csv'}",
        REGRESSION: f"csv:{directory / 'heights.csv'}?label=height [m]",
        MULTI_LABEL: f"csv:{directory / 'marks.csv'}?label=bright,even",
        "npz": f"npz:{directory / 'arrays.npz'}",
        "hdf5": f"hdf5:{directory / 'arrays.h5'}?images=images&labels=labels",
        "idx": f"idx:{directory / 'idx'}",
        "wds": f"wds:{directory / 'shards'}",
        "digits": "digits",
    }


def _bmp(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "bmp")
    return buffer.getvalue()


def _write_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["images"] = np.concatenate([pixels(split) for split in ROWS])
        file["labels"] = np.concatenate([labels(split) for split in ROWS])


def _write_idx(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        for what, values in (
            ("images-idx3", pixels(split)[..., 0]),
            ("labels-idx1", labels(split).astype(np.uint8)),
        ):
            header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(
                f">{values.ndim}I", *values.shape
            )
            (directory / f"{name}-{what}-ubyte").write_bytes(header + values.tobytes())


def _write_shards(directory: Path) -> None:
    for split in ROWS:
        (directory / split).mkdir(parents=True, exist_ok=True)
        with tarfile.open(directory / split / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, (image, label) in enumerate(zip(pixels(split), labels(split), strict=True)):
                for name, content in (
                    (f"{row:03d}.bmp", _bmp(image)),
                    (f"{row:03d}.cls", str(label).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (directory / split / "nshards.txt").write_text("1\n")
    (directory / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASSES))
