"""The head ``zero-shot``: images are classified by the embeddings of their classes' names, without training (CLIP, arXiv 2103.00020).

The embeddings of the class names come from the backbone's text tower, which this room does not know: `featcache.zero_shot` makes
them. They are kept beside the results, so the text tower runs once for a cache and its prompts.

Shapes: N samples, D width, E channels of an embedding, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from featcache.probing.heads import get_head
from featcache.probing.heads.base import Head
from featcache.probing.inputs.data import SplitData
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import L2_INPUT
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.results.rows import Chosen
from featcache.probing.scoring.tasks import make_task
from featcache.probing.training.fitted import FittedHead
from featcache.store.errors import CacheError, RequestError
from featcache.store.files import canonical_json, sha256_hex, write_atomic
from featcache.store.layers import FINAL
from featcache.store.reading.reader import Cache, as_float32
from featcache.store.token_groups import EMBEDDING

FOLDER = "class-embeddings"
"""Folder of the embeddings, beside the results."""


@dataclass(frozen=True)
class ClassEmbeddings:
    """Embeddings of class names, and how cosines become logits."""

    embeddings: Tensor
    """``[C, E]``, float32, each of length 1."""
    scale: float
    bias: float
    pooled: str
    """Kind of the token whose projection is the image's embedding, where the cache has no array of embeddings."""


EmbedClasses = Callable[[Cache, Sequence[str]], ClassEmbeddings]
"""Embeds the class names of a cache with templates."""


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of each class: its name, with spaces for underscores, in every template."""
    return [
        [template.replace("{}", name.replace("_", " ")) for template in templates] for name in class_names
    ]


def embeddings_of(cache: Cache, templates: Sequence[str], out: Path, embed: EmbedClasses) -> ClassEmbeddings:
    """Read the embeddings of a cache's class names from beside the results, or make and keep them.

    Raises:
        CacheError: the file is damaged.
        Exception: as `embed` raises.
    """
    backbone = cache.spec.backbone
    what = {
        "architecture": backbone.architecture,
        "weights": backbone.weights_digest,
        "classes": list(cache.inventory.class_names),
        "templates": list(templates),
    }
    path = out / FOLDER / f"{sha256_hex(canonical_json(what))[:12]}.safetensors"
    if not path.exists():
        made = embed(cache, templates)
        numbers = torch.tensor([made.scale, made.bias], dtype=torch.float64)
        tensors = {"embeddings": made.embeddings.contiguous(), "logit": numbers}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors["pooled_is_class_token"] = torch.tensor(made.pooled == "cls")
        write_atomic(path, save_tensors(tensors, {"described": canonical_json(what).decode()}))
    try:
        tensors = load_tensors(path.read_bytes())
        scale, bias = tensors["logit"].tolist()
        pooled = "cls" if bool(tensors["pooled_is_class_token"]) else "ap"
        found = ClassEmbeddings(tensors["embeddings"], scale, bias, pooled)
        fits = found.embeddings.ndim == 2 and len(found.embeddings) == len(cache.inventory.class_names)
    except Exception as error:  # safetensors raises an error of its own
        raise CacheError(
            f"{path} is damaged ({error}); delete it, and the same command makes it again"
        ) from None
    if not fits:
        raise CacheError(
            f"{path} holds no embedding for each class; delete it, and the same command makes it again"
        )
    return found


def image_embeddings(
    cache: Cache, split: str, pooled: str
) -> tuple[Tensor, npt.NDArray[np.int64], list[str]]:
    """Return the model's embeddings of the images of a split ``[N, E]``, their labels and ids, of the rows that hold features.

    Raises:
        RequestError: the cache does not hold the token that the embedding is made of.
    """
    reader, matrix = cache[split], cache.projection()
    valid = np.flatnonzero(reader.valid())
    if EMBEDDING in reader.inventory.arrays:
        stored = reader.view(EMBEDDING).gather(valid, [FINAL], [EMBEDDING])
    elif pooled in reader.view(FINAL).tokens:
        stored = reader.view(FINAL).gather(valid, [FINAL], [pooled])
    else:
        raise RequestError(
            f"{cache.directory} holds no {pooled} of the final layer, which the model's image embedding is made of; the same "
            f"`featcache extract` with --tokens {pooled} makes a cache that does"
        )
    features = torch.from_numpy(as_float32(stored, reader.dtype).reshape(len(valid), -1).copy())
    if matrix is not None:
        features = features @ torch.from_numpy(matrix.copy())
    ids = reader.sample_ids()
    return features, reader.labels()[valid], [ids[row] for row in valid]


def zero_shot(
    cache: Cache, job: HeadJob, classes: ClassEmbeddings, device: torch.device
) -> tuple[FittedHead, SplitData]:
    """Return the head that the class embeddings make, and the test images' embeddings that it classifies.

    Raises:
        RequestError: the cache lacks the image embeddings, or these have another width than the texts'.
    """
    features, labels, ids = image_embeddings(cache, "test", classes.pooled)
    num_classes, width = classes.embeddings.shape
    if features.shape[1] != width:
        raise RequestError(
            f"{cache.directory}: image embeddings have {features.shape[1]} channels, those of the class names {width}; the cache "
            "holds no projection of this model"
        )
    # Labels alone may not show all classes.
    task, _ = make_task(np.arange(num_classes), job.head.kinds[0])
    fitted = FittedHead(
        _head(classes, width),
        task,
        parameters=0,
        validation=nan,
        chosen=Chosen(),
        seconds=0.0,
        name=job.head.name,
        input=L2_INPUT,
        selection=job.selection,
    )
    tokens = InMemoryTokens(features[:, None].contiguous(), device)
    size = features.numel() * features.element_size()
    return fitted, SplitData(tokens, labels, ids, streamed=False, bytes=size)


def _head(classes: ClassEmbeddings, width: int) -> Head:
    """Return the linear head whose logits of embeddings of length 1 are the scaled cosines."""
    head = get_head("linear").build(1, width, len(classes.embeddings))
    bias = torch.full((len(classes.embeddings),), classes.bias)
    head.load_member({"classifier.weight": classes.scale * classes.embeddings, "classifier.bias": bias})
    return head.eval()
