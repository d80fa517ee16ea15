"""Heads that are fitted by formula: choose the settings on held-out samples of train, then fit on all of it.

The held-out samples are those of the trained heads (`featcache.probing.training.sweep_plan`); there is no jitter here.

Shapes: N samples, R held-out samples, C classes, O outputs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.devices.float32 import exact_float32
from featcache.probing.heads.base import Head
from featcache.probing.heads.closed_form import ClosedFormHead, Settings
from featcache.probing.heads.info import HeadInfo
from featcache.probing.inputs.features import StreamedFeatures
from featcache.probing.inputs.grouped import Groups
from featcache.probing.inputs.tokens import TokenSource, read_features
from featcache.probing.inputs.transforms import InputTransform, fit_input_transform
from featcache.probing.protocols.protocol import Protocol
from featcache.probing.scoring.held_out import Rank, make_held_out
from featcache.probing.scoring.soundness import DIVERGED, are_numbers
from featcache.probing.scoring.tasks import MultiLabel, Task, as_tensor, make_task
from featcache.probing.solver.logistic import solver_device
from featcache.probing.training.prediction import prediction_batch
from featcache.probing.training.rescaling import calibrate, rescale
from featcache.probing.training.sweep_plan import Split, check_number, make_splits
from featcache.store.errors import DivergedError

NATURAL_ENDS = {"penalty": None, "shrinkage": 1.0, "k": 1}
"""Settings whose grid is a part of a range, and the value at which the range ends."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClosedFormResult:
    """The outcome of one choice among settings."""

    settings: Settings
    """The chosen ones."""
    validation: tuple[tuple[Settings, float], ...]
    """The task's score on held-out samples for all settings."""
    held_out: Tensor
    """Outputs ``[R, O]`` under the chosen settings on held-out samples, split after split."""
    head: Head
    """Fitted on all of train, in eval mode."""
    num_classes: int
    seconds: float


@exact_float32()
def run_closed_form_sweep(
    info: HeadInfo,
    tokens: TokenSource,
    labels: npt.NDArray[Any],
    *,
    protocol: Protocol,
    seed: int,
    task: Task | None = None,
    sample_groups: Groups | None = None,
    device: torch.device | str = "cpu",
    memory: int = 2**31,
    block_rows: int | None = None,
    on_progress: OnProgress | None = None,
) -> ClosedFormResult:
    """Choose among the settings of a head and fit it on the whole train split.

    The features exist once in float32, or block by block with `block_rows`; the results differ by rounding alone. A tie goes to the likelier labels, then to the
    earlier settings.

    Args:
        info: a head of the registry that is fitted by formula.
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices ``[N]``, or other targets, as `make_task` takes them.
        protocol: how much is held out, and the input transform.
        seed: fixes the held-out samples; nothing else is random.
        task: what the targets are; by default what `make_task` makes of them.
        sample_groups: group of every sample ``[N]``; samples of one group are held out together.
        device: where to compute (Apple's GPUs have no float64: there it is the CPU).
        memory: bytes that the held-out outputs of all settings may take; if they need more, the outputs of the chosen settings
            are computed a second time.
        block_rows: samples of a block where the features do not fit into memory; None reads all of them at once.
        on_progress: called with the fits done and to be done.

    Raises:
        RequestError: targets that do not fit the samples or the head, a train split too small to hold anything out, or data too
            large for the method.
        DivergedError: no settings give finite outputs.
    """
    started = time.perf_counter()
    torch.set_flush_denormal(True)
    if task is None:
        task, labels = make_task(np.asarray(labels))
    info.check_kind(task.kind)
    check_number(labels, tokens.num_samples)
    head_class: type[ClosedFormHead] = info.load()
    head_class.check_size(tokens.num_samples, tokens.num_tokens * tokens.width)
    fits = _Fits(head_class, tokens, as_tensor(labels), task, protocol, solver_device(device), block_rows)
    splits = make_splits(labels, task, protocol, seed, sample_groups, tokens.num_views)
    if not splits:
        return _without_choice(fits, head_class.default(), task, started)
    report = on_progress or (lambda done, total: None)
    settings = head_class.grid(min(len(train) for train, _ in splits))
    targets = fits.targets[torch.cat([held for _, held in splits])]
    ranks, best, held_out = _compare(
        fits, splits, settings, targets, memory, lambda done: report(done, len(splits) + 1)
    )
    chosen = dict(settings[best])
    head = fits.fit(torch.arange(tokens.num_samples), [settings[best]])
    if not head.calibrated:
        held_out = calibrate(head, held_out, targets, task, chosen)
    report(len(splits) + 1, len(splits) + 1)
    _check_sound(head)
    validation = tuple((values, score) for values, (score, _) in zip(settings, ranks, strict=True))
    seconds = time.perf_counter() - started
    return ClosedFormResult(chosen, validation, held_out, head, task.num_outputs, seconds)


def _compare(
    fits: "_Fits",
    splits: Sequence[Split],
    settings: Sequence[Settings],
    targets: Tensor,
    memory: int,
    on_split: Callable[[int], None],
) -> tuple[list[Rank], int, Tensor]:
    """Fit all settings on every split and rank them by the held-out samples.

    Args:
        fits: what all fits share.
        splits: rows to fit on and rows held out.
        settings: the grid.
        targets: targets of the R held-out samples, split after split.
        memory: bytes that held-out outputs of all settings may take.
        on_split: called with the number of splits done.

    Returns:
        The rank of every setting, the index of the best, and the held-out outputs ``[R, O]`` of the best.

    Raises:
        DivergedError: no settings give finite outputs.
    """
    held = make_held_out(fits.task, len(settings), targets, memory)
    for number, split in enumerate(splits, 1):
        for outputs in fits.held_out(split, settings):
            held.add(outputs)
        on_split(number)
    ranks = held.ranks()
    best = max(range(len(settings)), key=lambda index: ranks[index])
    if ranks[best][0] == DIVERGED:
        raise DivergedError(
            f"outputs are not finite under any of {len(settings)} settings; use another input transform"
        )
    held_out = held.outputs(best)
    if held_out is None:  # too many to keep for all settings
        held_out = torch.cat(
            [batch[0] for split in splits for batch in fits.held_out(split, [settings[best]])]
        )
    return ranks, best, held_out


def ends_of_grid(validation: Sequence[tuple[Settings, float]], chosen: Settings) -> list[str]:
    """Report chosen settings at the end of their grid, since better ones may lie beyond."""
    notes = []
    for name, natural in NATURAL_ENDS.items():
        values = sorted({settings[name] for settings, _ in validation if name in settings})
        if len(values) < 2 or chosen[name] not in (values[0], values[-1]) or chosen[name] == natural:
            continue
        end = "largest" if chosen[name] == values[-1] else "smallest"
        notes.append(f"the {end} {name} was chosen, {chosen[name]:.3g}; a better one may lie beyond")
    return notes


def _without_choice(fits: "_Fits", settings: Settings, task: Task, started: float) -> ClosedFormResult:
    head = fits.fit(torch.arange(fits.tokens.num_samples), [settings])
    if isinstance(task, MultiLabel) and not head.calibrated:
        # Outputs near 0 and 1, and nothing to measure them by: the tangent of the log odds at one half.
        rescale(head, torch.tensor(4.0), torch.tensor(-2.0))
    _check_sound(head)
    empty = torch.empty(0, task.num_outputs)
    seconds = time.perf_counter() - started
    return ClosedFormResult(settings, ((settings, nan),), empty, head, task.num_outputs, seconds)


@dataclass(frozen=True)
class _Fits:
    """Fits of one head to parts of train, with any of its settings."""

    head_class: type[ClosedFormHead]
    tokens: TokenSource
    targets: Tensor
    task: Task
    protocol: Protocol
    device: torch.device
    block_rows: int | None

    def fit(self, rows: Tensor, settings: Sequence[Settings]) -> ClosedFormHead:
        """Fit a head of all settings on some samples."""
        transform: InputTransform = fit_input_transform(self.protocol.input, self.tokens, rows)
        source = self.tokens.with_transform(transform)
        size, targets = (self.tokens.num_tokens, self.tokens.width), self.targets[rows].to(self.device)
        if self.block_rows is None:
            features = read_features(source, rows, self.device)
            head = self.head_class.fit(features, targets, size, self.task, settings)
        else:
            blocks = StreamedFeatures(source, rows, self.device, self.block_rows)
            head = self.head_class.fit_blocks(blocks, targets, size, self.task, settings)
        head.input_transform = transform
        return head

    def held_out(self, split: Split, settings: Sequence[Settings]) -> Iterator[Tensor]:
        """Yield outputs ``[M, B, O]`` of all settings on the held-out part, batch by batch; the heads are fitted on the rest."""
        head = self.fit(split[0], settings)
        source = self.tokens.with_transform(head.input_transform)
        for rows in torch.split(split[1], prediction_batch(self.tokens, head)):
            with torch.inference_mode():
                outputs = head(source.batch(rows).to(self.device)).cpu()
            yield outputs


def _check_sound(head: ClosedFormHead) -> None:
    if not are_numbers(head.state_dict().values()):
        raise DivergedError("the fit on all of train is not finite; use another input transform")
