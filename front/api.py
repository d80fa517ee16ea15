"""The public functions, for Python and notebooks: what the commands do, with the same names and defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.store.address import is_address, parse_address
from featcache.store.catalogue import remote_roots, roots, select
from featcache.store.errors import HeadNotFoundError
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone
    from featcache.extraction.sources.base import Source
    from featcache.probing.requests.request import ProbeRequest
    from featcache.probing.results.rows import ResultRow
    from featcache.probing.trained import TrainedHead

PathLike = str | Path
DEFAULT_HEAD = "attentive"


def open(
    directory: PathLike,
    *,
    allow_partial: bool = False,
    splits: Sequence[str] = (),
    layers: str | None = None,
    taps: Sequence[str] = (),
    patches: bool = True,
) -> Cache:
    """Open a cache for reading; nothing is loaded until it is asked for.

    The address of a cache on a remote (``s3://bucket/team/flowers/vit-l-14-...``) is fetched into the first root first,
    as far as the local copy lacks it; the arguments below say how much. Such borrowed copies are removed when others
    need their room (``FEATCACHE_BORROWED``, 50 GB if not set).

    Args:
        directory: folder of the cache, the one that holds manifest.json (`featcache ls` prints it), or an address.
        allow_partial: also open a cache whose extraction has not finished.
        splits: of an address, the splits that are needed; all if empty.
        layers: of an address, a layer set or a list such as ``0,6,final``; all if not given.
        taps: of an address, the taps that are needed; all if empty.
        patches: of an address, whether patch tokens are needed.

    Raises:
        CacheNotFoundError: there is no cache.
        RemoteError: the remote cannot be reached or refuses.
        IncompleteCacheError: the extraction has not finished.
        CacheError: its metadata are damaged.

    Example:
        >>> train = featcache.open("caches/flowers/vit-l-14-0123456789ab")["train"]  # doctest: +SKIP
        >>> features = train.load(["11", "final"], ["cls"])  # [N, 2, 1, D]          # doctest: +SKIP
    """
    if is_address(str(directory)):
        from featcache.store.transfer.borrow import borrow
        from featcache.store.transfer.plan import Choice

        choice = Choice(tuple(splits), layers, tuple(taps), patches)
        directory = borrow(
            parse_address(str(directory)),
            roots(),
            lambda whole: choice.of(whole.inventory, whole.spec.backbone.num_layers),
        )
    return open_cache(directory, allow_partial=allow_partial)


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


def probe(
    cache: Cache | PathLike,
    head: str | Sequence[str] = DEFAULT_HEAD,
    *,
    layers: str | None = None,
    tokens: str | None = None,
    tap: str = "norm2",
    table: str | None = None,
    num_heads: int | None = None,
    protocol: str = "paper",
    solver: str = "adamw",
    penalty: str = "l2",
    input: str | None = None,
    folds: int | None = None,
    groups: str | Path | None = None,
    halving: int | None = None,
    shots: Sequence[int] = (),
    draws: int = 1,
    target_kind: str | None = None,
    regression_loss: str = "mse",
    options: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0,),
    precision: str = "auto",
    device: str = "auto",
    memory: int | None = None,
    out: PathLike = "featcache-results",
    force: bool = False,
    progress: bool = True,
) -> "list[ResultRow]":
    """Train heads on a cache, score them on the test split, and keep heads and results in `out`.

    Args:
        cache: an open cache; or its folder, key or ``DATASET/MODEL-KEY``; or its address on a remote, of which only
            what is needed is fetched.
        head: one head, or several.
        layers: layer set or list; by default each head's own.
        tokens: token kinds, such as ``cls+ap``; by default each head's own.
        tap: where in the blocks, of what the cache holds: ``norm2``, ``block``, ``attn``, ``mlp``, ``norm1``.
        table: the rows of a table instead of `head`, `layers` and `tokens`: ``paper``.
        num_heads: attention heads.
        protocol: name, or TOML file, of what is swept over and how heads are trained.
        solver: ``adamw``, or ``exact`` for linear heads.
        penalty: of the exact solver: ``l2`` or ``group-lasso``.
        input: input transform: ``l2``, ``standard`` or ``l2+standard``; the protocol's if not given.
        folds: choose by so many folds of train; as the protocol has it if not given.
        groups: CSV file of sample_id and group: train samples of one group are held out together when settings are chosen.
        halving: successive halving keeps one in so many members.
        shots: train on so many samples of each class; on all if none is given.
        draws: how often the samples of a few-shot run are drawn.
        target_kind: ``single-label``, ``multi-label`` or ``regression``; the cache's if not given.
        regression_loss: ``mse`` or ``mae``.
        options: what heads take besides, such as ``{"hidden": 256}``.
        seeds: each is a run of its own.
        precision: of matrix products: ``fp32``, ``bf16`` or ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        memory: bytes for tokens and members that train.
        out: folder of the results; what it holds already is not trained again.
        force: train it again nevertheless.
        progress: show messages and progress on stderr.

    Returns:
        The baseline's rows first (the linear probe on the last layer's class token), then those asked for.

    Raises:
        RequestError: the request is wrong; `UnknownNameError` for a name that does not exist.
        CacheError: the cache is damaged; `CacheNotFoundError` if there is none.
        DivergedError: heads diverged; the other heads were trained and kept, and the error's `rows` has their results.

    Example:
        >>> rows = featcache.probe(cache, ["linear", "attentive"], layers="all", tokens="cls+ap")  # doctest: +SKIP
        >>> {row.head: row.score for row in rows}                                      # doctest: +SKIP
    """
    from featcache.probing.requests.request import ProbeRequest

    named = (head,) if isinstance(head, str) else tuple(head)
    request = ProbeRequest(
        heads=() if table is not None and head == DEFAULT_HEAD else named,
        layers=layers,
        tokens=tokens,
        tap=tap,
        table=table,
        num_heads=num_heads,
        protocol=protocol,
        solver=solver,
        penalty=penalty,
        input=input,
        folds=folds,
        groups=None if groups is None else Path(groups),
        halving=halving,
        shots=tuple(shots),
        draws=draws,
        target_kind=target_kind,
        regression_loss=regression_loss,
        options=options or {},
        seeds=tuple(seeds),
        precision=precision,
        memory=memory,
        out=Path(out),
        force=force,
    )
    reporter = ConsoleReporter(quiet=not progress)
    opened = cache if isinstance(cache, Cache) else _find(str(cache), request, reporter)

    from featcache.devices.choice import choose_device
    from featcache.probing.run import probe as run_probe

    return run_probe(opened, request, device=choose_device(device), reporter=reporter)


def _find(cache: str, request: "ProbeRequest", reporter: ConsoleReporter) -> Cache:
    from featcache.probing.requests.borrowing import borrow_for_probe

    if is_address(cache):
        return open_cache(borrow_for_probe(cache, roots(), request, reporter))
    return open_cache(select(roots(), cache).path)


def load_head(folder: PathLike) -> "TrainedHead":
    """Load a head that `probe` saved, to score new features with; no cache is needed.

    Args:
        folder: of the head, under the results' ``heads/``: `ResultRow.folder`.

    Raises:
        HeadNotFoundError: there is no head; also a `FileNotFoundError`.
        CacheError: its files are damaged or do not fit each other.

    Example:
        >>> head = featcache.load_head("featcache-results/heads/...")                       # doctest: +SKIP
        >>> head.predict_proba(features, layers=head.layers)  # [N, L, K, D] -> [N, C]      # doctest: +SKIP
    """
    from featcache.probing.trained import TrainedHead

    try:
        return TrainedHead.load(folder)
    except FileNotFoundError:
        raise HeadNotFoundError(
            f"{folder} holds no head; give OUT/FOLDER, where OUT is what `probe` wrote its results to "
            "(featcache-results if not said) and FOLDER is the `folder` of a row that it returned"
        ) from None
