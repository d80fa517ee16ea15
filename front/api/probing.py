"""`featcache.probe`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.types import PathLike
from featcache.store.address import is_address
from featcache.store.catalogue import roots, select
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.probing.requests.request import ProbeRequest
    from featcache.probing.results.rows import ResultRow

DEFAULT_HEAD = "attentive"


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
        input: input stage: ``l2``, ``standard`` or ``l2+standard``; the protocol's if not given.
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
