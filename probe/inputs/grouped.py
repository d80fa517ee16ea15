"""Hold out whole groups (such as all images of a patient), so that no held-out sample has a sibling in training.

Shapes: N samples, G groups, S strata, K parts.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.probing.inputs.split import Rows, by_fold
from featcache.store.errors import RequestError

Targets = npt.NDArray[np.generic]
Groups = npt.NDArray[np.generic]
COLUMNS = ("sample_id", "group")


def read_groups(path: Path) -> dict[str, str]:
    """Read the group of every sample from a CSV file with the columns sample_id and group.

    Raises:
        RequestError: the file does not exist, lacks a column or a value, or names a sample twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--groups {path} cannot be read: {error}") from error
    # Not line by line, since a quoted id may contain a line break.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _groups_in(reader, str(path))
    except csv.Error as error:
        raise RequestError(f"--groups {path} is no CSV after line {reader.line_num}: {error}") from None


def _groups_in(reader: "csv.DictReader[str]", path: str) -> dict[str, str]:
    if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
        raise RequestError(f"--groups {path} must have the columns sample_id and group in its first line")
    found: dict[str, str] = {}
    for row in reader:
        sample, group = row["sample_id"], row["group"]
        if not sample or not group:
            raise RequestError(f"--groups {path}, line {reader.line_num}: sample_id or group is empty")
        if found.setdefault(sample, group) != group:
            raise RequestError(f"--groups {path}, line {reader.line_num}: {sample} has a second group")
    return found


def groups_of(sample_ids: Sequence[str], named: Mapping[str, str]) -> Groups:
    """The group of every sample, ``[N]``.

    Raises:
        RequestError: a sample has no group.
    """
    missing = [sample for sample in sample_ids if sample not in named]
    if missing:
        raise RequestError(
            f"{len(missing)} of {len(sample_ids)} train samples have no group, the first is {missing[0]}; name all of them"
        )
    return np.array([named[sample] for sample in sample_ids])


def grouped_holdout(targets: Targets, groups: Groups, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out whole groups, about `fraction` of the samples and of every class or label; no class loses all of its samples.

    Returns:
        Training rows and held-out rows, both sorted int64.

    Raises:
        RequestError: `fraction` is out of range, or no group can be held out.
    """
    if not 0 < fraction < 1:
        raise RequestError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    part = _deal(targets, groups, (1 - fraction, fraction), seed, trained=0)
    if not (part == 1).any():
        raise RequestError(
            "no group can be held out and leave all its classes in train; give more groups, or leave the groups out"
        )
    return np.flatnonzero(part != 1).astype(np.int64), np.flatnonzero(part == 1).astype(np.int64)


def grouped_folds(targets: Targets, groups: Groups, number: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide whole groups into folds, with about equal shares of every class or label.

    A group that holds all samples of a class is never held out.

    Raises:
        RequestError: fewer than 2 folds, or one of them is empty.
    """
    part = _deal(targets, groups, [1 / max(number, 1)] * max(number, 1), seed)
    filled = len(np.unique(part[part >= 0]))
    if filled < number:
        raise RequestError(
            f"the groups that can be held out fill {filled} of {number} folds; ask for fewer folds"
        )
    return by_fold(part, number, int((part >= 0).sum()))


def _deal(
    targets: Targets, groups: Groups, shares: Sequence[float], seed: int, trained: int | None = None
) -> Rows:
    """The part of every sample, ``[N]``; -1 where its group fits none.

    Large groups come first. Each group goes to the part that it brings closest to its share of every stratum. A group that would
    complete a stratum in a part goes to no part but `trained`.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    _, index = np.unique(groups, return_inverse=True)
    counts = _counts(np.asarray(targets), index.reshape(-1))  # [G, S]
    sizes = counts.sum(0)
    wanted, weight = np.outer(shares, sizes), 1 / np.maximum(sizes, 1)
    taken, part_of = np.zeros((len(shares), len(sizes))), np.full(len(counts), -1)
    lot = rng.permutation(len(counts))
    for group in lot[np.argsort(-counts[lot, 0], kind="stable")].tolist():
        own = counts[group]
        cost = ((np.square(taken + own - wanted) - np.square(taken - wanted)) * weight).sum(1)
        # The first stratum has all samples, so it is excluded: only real classes must remain in training.
        whole = ((taken + own >= sizes) & (own > 0))[:, 1:].any(1)
        if len(sizes) == 1:
            whole = taken[:, 0] + own[0] >= sizes[0]
        if trained is not None:
            whole[trained] = False
        if whole.all():
            continue
        chosen = int(np.where(whole, np.inf, cost).argmin())
        part_of[group], taken[chosen] = chosen, taken[chosen] + own
    parts: Rows = part_of[index.reshape(-1)]
    return parts


def _counts(targets: Targets, index: Rows) -> npt.NDArray[np.float64]:
    """Return sample counts of every group, ``[G, S]``: all samples, then each class or label (none for real values)."""
    number = int(index.max()) + 1
    everything = np.bincount(index, minlength=number)[:, None].astype(np.float64)
    if targets.dtype.kind == "f" and not np.isin(targets, (0, 1)).all():
        return everything
    if targets.ndim == 1:
        _, label = np.unique(targets, return_inverse=True)
        labelled = np.zeros((number, int(label.max()) + 1))
        np.add.at(labelled, (index, label.reshape(-1)), 1)
    else:
        labelled = np.zeros((number, targets.shape[1]))
        np.add.at(labelled, index, targets.astype(np.float64))
        labelled = labelled[:, labelled.any(0)]
    return np.concatenate([everything, labelled], 1)
