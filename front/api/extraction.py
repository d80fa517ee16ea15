"""`featcache.extract`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.types import PathLike
from featcache.store.catalogue import remote_roots, roots
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone
    from featcache.extraction.sources.base import Source


def extract(
    model: str,
    dataset: str,
    *,
    weights: PathLike | None = None,
    weights_key: str | None = None,
    taps: Sequence[str] = ("norm2",),
    layers: str = "every",
    tokens: str = "cls,ap",
    patches: str | None = None,
    splits: Sequence[str] = (),
    dtype: str = "float16",
    precision: str = "auto",
    data: PathLike | None = None,
    revision: str | None = None,
    target: str = "auto",
    limit: int | None = None,
    split_seed: int = 0,
    test_splits: Sequence[str] = (),
    train_split: str | None = None,
    group_by: str | None = None,
    resplit: bool = False,
    pixel_range: str = "auto",
    exif_orientation: str = "ignore",
    max_pixels: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    compile: bool = False,
    on_error: str = "stop",
    root: PathLike | None = None,
    force: bool = False,
    backbone: "Backbone | None" = None,
    source: "Source | None" = None,
    progress: bool = True,
) -> Cache:
    """Make sure that the tokens of a backbone on a dataset are cached, and open the cache.

    Args:
        model: alias or explicit name (`featcache models`); just a name where `backbone` is given.
        dataset: short name (`featcache datasets`) or ``KIND:PLACE``; just a name where `source` is given.
        weights: local weights instead of the hub's.
        weights_key: set of weights to take from a file that holds several, such as ``model_ema``.
        taps: what to record in a block: ``norm2``, ``block``, ``attn``, ``mlp``, ``norm1``.
        layers: a layer set, or a list of blocks.
        tokens: kinds of tokens, such as ``cls,ap,registers,grid2``.
        patches: layers whose patch tokens are cached.
        splits: which splits; all if empty.
        dtype: stored type: ``float16``, ``bfloat16`` or ``float32``.
        precision: of the forward pass: ``fp32``, ``mixed`` or ``auto``.
        data: folder of a local copy of the dataset, laid out as on the Hub.
        revision: commit, branch or tag of the dataset on the Hub.
        target: ``single-label``, ``multi-label`` or ``regression``; what it looks like if ``auto``.
        limit: at most this many samples of each split, stratified by class.
        split_seed: of the 75/25 split of a dataset that has none.
        test_splits: the dataset's own splits to test on; its ``test`` if empty.
        train_split: the dataset's own split to train on; its ``train`` if not given.
        group_by: column whose groups are in train or in test, never in both.
        resplit: put the dataset's own splits together and split anew.
        pixel_range: values of black and white in images of more than 8 bits: a number of bits such as ``12``, or
            ``LOW..HIGH``.
        exif_orientation: ``apply`` rotates images by their EXIF orientation; by default pixels are taken as stored.
        max_pixels: size limit of a decoded image in pixels; 178,956,970 if not given.
        batch_size: samples in a forward pass; chosen by device if not given.
        workers: processes that decode images.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        compile: compile the forward pass; it is checked against the plain one first.
        on_error: ``stop`` at an image that does not decode, or ``skip`` it.
        root: where the cache is looked for and written to; by default as on the command line.
        force: extract even what a teammate has on a remote in FEATCACHE_ROOT.
        backbone: one's own, made by `featcache.extraction.backbones.custom.custom_backbone`.
        source: one's own dataset, made by `featcache.extraction.sources.sequences.python_dataset`.
        progress: show messages and progress on stderr.

    Raises:
        RequestError: the request is wrong; `UnknownNameError` for a name that does not exist.
        DatasetError: the dataset cannot be used.
        BackboneError: the backbone cannot be loaded or its features would be wrong.
        InterruptedRunError: Ctrl-C; what was committed stays, and the same call goes on.

    Example:
        >>> cache = featcache.extract("dinov2-vit-s-14", "imagefolder:photos")  # doctest: +SKIP
    """
    from featcache.extraction.requests.feature_selection import Contents
    from featcache.extraction.requests.request import ExtractRequest
    from featcache.extraction.run import extract as run_extract

    request = ExtractRequest(
        model=model,
        dataset=dataset,
        weights=None if weights is None else Path(weights),
        weights_key=weights_key,
        dtype=dtype,
        precision=precision,
        contents=Contents(tuple(taps), layers, tokens, patches, tuple(splits)),
        data=None if data is None else Path(data),
        revision=revision,
        target=target,
        limit=limit,
        split_seed=split_seed,
        test_splits=tuple(test_splits),
        train_split=train_split,
        group_by=group_by,
        resplit=resplit,
        pixel_range=pixel_range,
        exif_orientation=exif_orientation,
        max_pixels=max_pixels,
        batch_size=batch_size,
        workers=workers,
        device=device,
        compile=compile,
        on_error=on_error,
    )
    named = [] if root is None else [Path(root)]
    reporter = ConsoleReporter(quiet=not progress)
    result = run_extract(
        request,
        roots(named),
        backbone=backbone,
        source=source,
        reporter=reporter,
        remotes=[] if force else remote_roots(named),
    )
    for note in result.notes:
        reporter.message(f"note: {note}")
    return open_cache(result.path)
