"""Backbones, images and extractions that the benchmarks of the extraction share."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featcache.devices.precision import fast_precision, forward_context
from featcache.extraction.backbones.base import Backbone, LoadedModel
from featcache.extraction.backbones.timm_vit import TimmViT, layout_of
from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.prefetch import normalized
from featcache.extraction.decoding.preprocessing import EightBitTransform, versions_of, with_resize
from featcache.extraction.decoding.views import view_inputs
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Sample, Source
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.spec import BackboneSpec, CacheSpec
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.writing.writer import CacheWriter

JPEG_SIZE = (500, 375)
"""Width and height of ImageNet's usual photo."""
CLASSES = 4


class Bench:
    """A backbone, a dataset, and extractions of the first rows of it into caches that are thrown away."""

    def __init__(
        self, backbone: Backbone, source: Source, device: torch.device, folder: Path, workers: int, batch: int
    ) -> None:
        self.backbone = backbone
        self.source = source
        self.device = device
        self.precision = fast_precision(device)
        self.workers = workers
        self.batch = batch
        self.folder = folder
        """Folder of the caches."""
        self.messages: list[str] = []
        """Messages of the extractions so far."""
        self._folders = (folder / f"cache-{number}" for number in count())
        backbone.module.to(device)

    def plan(self, rows: int, contents: FeatureSelection | None = None) -> Plan:
        """All that `contents` says of the first rows of train."""
        # The last version of resizing is the one that new caches are made with.
        backbone = self.backbone.spec.resized_by(versions_of(self.backbone.transform)[-1])
        spec = CacheSpec(backbone, {"kind": "bench"}, "float16", self.precision)
        selection = contents or FeatureSelection()
        inventory = plan_inventory(self.backbone, FirstRows(self.source, rows), selection, "float16")
        return Plan(spec, inventory, self.batch)

    def only(self, rows: int, arrays: Sequence[TokenArray]) -> Plan:
        """Just some arrays."""
        plan = self.plan(rows)
        split = plan_arrays(
            "train", rows, arrays, self.backbone.spec.width, "float16", 64, content_digest=True
        )
        return replace(plan, inventory=Inventory({"train": split}, plan.inventory.class_names))

    def extract(
        self, plan: Plan, compile: bool = False, directory: Path | None = None
    ) -> list[tuple[int, float]]:
        """Run the extraction; the images that are through, and when, from the start on. Where a directory is named, the cache is completed."""
        moments: list[tuple[int, float]] = []
        size = self.backbone.spec.input_size
        transform = with_resize(self.backbone.transform, plan.spec.backbone.resize)
        views = view_inputs(self.backbone, plan.spec.backbone.resize, plan.inventory)
        images = ImageInput(self.source, transform, size, self.workers, self.device, views=views)
        forward = Forward(self.backbone, self.device, compile, self.messages.append)
        into = directory or next(self._folders)
        with forward.extractors(plan) as extractors, CacheWriter(into, plan) as writer:
            moments.append((0, time.perf_counter()))
            run_blocks(
                writer, images, extractors, lambda done, total: moments.append((done, time.perf_counter()))
            )
            moments.append((plan.inventory.num_samples, time.perf_counter()))
            if directory is not None:
                writer.finish({"completed_at": 1.0}, "# card\n")
        return moments

    def timed(self, plan: Plan) -> Callable[[], object]:
        """The extraction as something to time."""
        return lambda: self.extract(plan)

    def plain_loop(self, rows: int) -> None:
        """The loop that one writes without featcache: the class token of the last layer, one pass after another."""
        parts = [Rows("train", start, min(start + self.batch, rows)) for start in range(0, rows, self.batch)]
        transform = self.backbone.transform
        loader = image_batches(
            self.source,
            transform,
            parts,
            self.workers,
            self.backbone.spec.input_size,
            self.device if self.device.type == "cuda" else None,
        )
        kept = []
        for batch in loader:
            images = batch.images.to(self.device, non_blocking=True)
            kept.append(self.last_token(normalized(batch._replace(images=images), transform).images))
        with next(self._folders).open("wb") as file:
            np.save(file, torch.cat(kept).half().numpy())

    @torch.inference_mode()
    def last_token(self, images: torch.Tensor) -> torch.Tensor:
        """The class token ``[B, D]`` of the final norm, on the host."""
        seen: list[torch.Tensor] = []
        handle = self.backbone.final_norm.register_forward_hook(
            lambda module, inputs, output: seen.append(output[:, 0])
        )
        with forward_context(self.device, self.precision):
            self.backbone.forward(images.to(self.device, non_blocking=True))
        handle.remove()
        return seen[0].float().cpu()


@dataclass
class FirstRows(Source):
    """The first rows of a source's train split."""

    source: Source
    rows: int

    @property
    def name(self) -> str:
        """Name of the benchmarks' dataset."""
        return "bench"

    @property
    def identity(self) -> Mapping[str, Any]:
        """No identity: the cache is thrown away."""
        return {}

    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        """The rows."""
        return {"train": self.source.splits["train"][: self.rows]}

    @property
    def targets(self) -> Targets:
        """Those of the source."""
        return self.source.targets

    def image(self, split: str, row: int) -> Image.Image:
        """That of the source."""
        return self.source.image(split, row)


class Synthetic(Source):
    """As many copies of one image of noise as wanted, decoded already."""

    name = "synthetic"
    targets = Targets(SINGLE_LABEL, tuple(f"class {label}" for label in range(CLASSES)))
    identity: Mapping[str, object] = {}

    def __init__(self, rows: int, size: int = 8) -> None:
        self._samples = {"train": [Sample(f"image-{row}", row % CLASSES) for row in range(rows)]}
        self._image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The copies."""
        return self._samples

    def image(self, split: str, row: int) -> Image.Image:
        """The one image."""
        return self._image


class Decoded:
    """A step of preprocessing that has its result already."""

    def __init__(self, size: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        self._image = Image.fromarray(pixels)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The one image of S x S pixels."""
        return self._image


def decoded(size: int) -> EightBitTransform:
    """Return preprocessing that costs next to nothing; batches are handed over and normalized as others are."""
    return EightBitTransform((Decoded(size),), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def random_backbone(model: str, size: int = 224, **options: int) -> TimmViT:
    """A vision transformer of timm with random weights, made without the network.

    Args:
        model: name of the architecture in timm.
        size: side of the input, pixels.
        options: passed on to timm, such as ``depth``.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(model, num_classes=0, img_size=size, **options).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.3)  # at timm's 1e-5, no block would change the features
    config = {
        **timm.data.resolve_model_data_config(module),
        "input_size": (3, size, size),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    spec = BackboneSpec(f"timm:{model}", "0" * 64, len(module.blocks), module.embed_dim, size, {"size": size})
    transform = timm.data.create_transform(**config, is_training=False)
    return TimmViT(LoadedModel(spec, module, transform, layout_of(module), {"origin": "memory"}))


def toy_backbone() -> TimmViT:
    """A backbone that is fast on any machine, and whose speed says nothing."""
    return random_backbone("vit_small_patch14_dinov2", 56, depth=2)


def photo(seed: int) -> bytes:
    """A JPEG of 500 x 375 with the spectrum of a photo (1/f), quality 90: about 110 kB, as ImageNet's files."""
    width, height = JPEG_SIZE
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(width)[None], np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = 1 / width
    channels: list[np.ndarray] = []
    for _ in range(3):
        noise = rng.normal(size=(height, width)) + 1j * rng.normal(size=(height, width))
        channel = np.fft.ifft2(noise / frequency**1.05).real
        # Colors of a photo vary less than its brightness.
        channels.append(0.8 * channels[-1] + 0.35 * channel if channels else channel)
    pixels = np.stack(channels, -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120 + rng.normal(size=pixels.shape) * 2.5
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def photos(folder: Path, number: int, distinct: int = 64) -> Source:
    """A folder of JPEGs in four classes, as a source whose rows are all in the train split.

    Args:
        folder: folder to make.
        number: number of files.
        distinct: number of different images among them.
    """
    contents = [photo(seed) for seed in range(min(number, distinct))]
    for index in range(number):
        path = folder / "train" / f"class{index % CLASSES}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[index % len(contents)])
    for label in range(CLASSES):  # a folder that has splits keeps them
        path = folder / "test" / f"class{label}" / "0.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[0])
    return resolve_source(f"imagefolder:{folder}")


def matrix_rate(device: torch.device, side: int, runs: int = 10) -> float:
    """Floating-point operations per second of a large bfloat16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    synchronize: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(runs):
        synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / sorted(seconds)[len(seconds) // 2]
