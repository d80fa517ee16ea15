"""Heads fitted to arrays instead of a cache."""

from typing import Any

import numpy.typing as npt
import torch

from featcache.devices.precision import FP32
from featcache.probing.heads import HeadInfo
from featcache.probing.inputs.data import SplitData
from featcache.probing.inputs.selection import array_selection
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.protocols.protocol import Protocol
from featcache.probing.requests.jobs import HeadJob, make_job
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.scoring.kinds import REGRESSION_LOSSES
from featcache.probing.training.fitted import FittedHead
from featcache.probing.training.fitting import fit_job
from featcache.probing.training.strategy import FitSettings
from featcache.store.progress import Reporter, Silent


def fit_head(
    job: HeadJob,
    tokens: TokenSource,
    targets: npt.NDArray[Any],
    *,
    protocol: Protocol,
    seed: int = 0,
    target_kind: str | None = None,
    regression_loss: str = REGRESSION_LOSSES[0],
    device: torch.device | str = "cpu",
    precision: str = FP32,
    memory: int = 2**31,
    groups: npt.NDArray[Any] | None = None,
    reporter: Reporter | None = None,
) -> FittedHead:
    """Choose and fit a head on arrays instead of a cache.

    Args:
        job: head and tokens; `featcache.probing.requests.jobs.make_job` makes one.
        tokens: N samples.
        targets: as `make_task` takes them.
        protocol: what is swept over, and how.
        seed: fixes everything that is drawn.
        target_kind: what the targets are; by default what their type says.
        regression_loss: ``mse`` or ``mae``.
        device: where to fit.
        precision: of matrix products in training, ``fp32`` or ``bf16``.
        memory: bytes for the members that train together.
        groups: group of every sample ``[N]``; samples of one group are held out together during the choice of settings.
        reporter: receives messages and progress.

    Raises:
        RequestError: targets that do not fit the samples or the head, or too few samples.
    """
    settings = FitSettings(
        protocol,
        torch.device(device),
        precision,
        memory,
        reporter=reporter or Silent(),
        target_kind=target_kind,
        regression_loss=regression_loss,
    )
    train = SplitData(tokens, targets, (), streamed=False, bytes=0, groups=groups)
    return fit_job(job, train, settings, seed=seed, run="", title=job.head.name)


def array_job(
    info: HeadInfo,
    num_tokens: int,
    num_layers: int | None = None,
    num_heads: int | None = None,
    **options: int,
) -> HeadJob:
    """Return a job for arrays: T tokens, layer by layer, of L layers (by default T).

    Raises:
        RequestError: the tokens do not divide among the layers.
    """
    request = ProbeRequest(heads=info, num_heads=num_heads, options=options)
    return make_job(info, array_selection(num_tokens, num_layers), request)
