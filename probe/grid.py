"""One request over several caches: a grid of datasets and backbones."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import ResultRow
from featcache.probing.run import probe
from featcache.probing.zero_shot import EmbedClasses
from featcache.store.errors import DivergedError, FeatcacheError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache
from featcache.store.text import rough_duration


@dataclass(frozen=True)
class GridResult:
    """The rows and failures of a grid."""

    rows: list[ResultRow] = field(default_factory=list)
    """Cache by cache, as `probe` returns them."""
    failures: dict[str, FeatcacheError] = field(default_factory=dict)
    """Errors by the folder of the cache; if heads diverged, the rows of other heads remain."""


def probe_grid(
    caches: Sequence[Cache],
    request: ProbeRequest,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    embed_classes: EmbedClasses | None = None,
) -> GridResult:
    """Probe several caches in turn; an error on one cache does not end the others.

    Runs that the results hold already are not trained again, so the same call resumes after an interruption.

    Args:
        caches: open caches, each with the splits ``train`` and ``test``.
        request: what to train on each.
        device: where to train.
        reporter: receives messages and progress.
        embed_classes: embeds the class names for zero-shot; see `featcache.zero_shot`.
    """
    reporter = reporter or Silent()
    result = GridResult()
    started = time.monotonic()
    for number, cache in enumerate(caches):
        if len(caches) > 1:
            left = (time.monotonic() - started) / number * (len(caches) - number) if number else 0.0
            about = f", about {rough_duration(left)} left" if left > 0 else ""
            reporter.message(f"cache {number + 1} of {len(caches)}{about}: {cache.directory}")
        try:
            result.rows.extend(
                probe(cache, request, device=device, reporter=reporter, embed_classes=embed_classes)
            )
        except DivergedError as error:
            result.rows.extend(error.rows)
            result.failures[str(cache.directory)] = error
        except FeatcacheError as error:
            if len(caches) == 1:
                raise
            reporter.message(f"{cache.directory} is passed over: {error}")
            result.failures[str(cache.directory)] = error
    return result
