"""The names that datasets give their own splits, and the choice of those to train and to test on.

All sources use this module, so ``Train`` means the same in a folder, a column, an HDF5 group and a Python mapping. A dataset
that has splits is never treated as one that has none: where its names do not tell which split is which, `choose_splits`
refuses with a list of them.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.store.errors import DatasetError, RequestError, UnknownNameError

if TYPE_CHECKING:
    from featcache.extraction.sources.dataset_options import DatasetOptions

TRAIN, TEST, VALIDATION = "train", "test", "val"
SPLIT_COLUMNS = ("split", "splits", "set", "subset", "partition", "fold", "phase", "usage")
"""Names of columns that hold a split, in any capitalization."""
_ROLES = {
    TRAIN: ("train", "training", "trn", "tr"),
    TEST: ("test", "testing", "tst", "te"),
    VALIDATION: ("val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_FILLERS = frozenset(
    ["data", "dataset", "datasets", "set", "split", "image", "images", "img", "imgs", "folder"]
)
_SUFFIX = re.compile(r"(data|dataset|split|set|images|imgs|(19|20)\d\d)$")
_NUMBER = re.compile(r"(?<=[a-z])[-_ ]?\d{1,2}$", re.IGNORECASE)
_FLAG_PREFIX = re.compile(r"^(is|in|for|use)[-_ ]?(?=[a-z])")
_YES, _NO = ("1", "1.0", "true", "t", "yes", "y"), ("0", "0.0", "false", "f", "no", "n")


@dataclass(frozen=True)
class ChosenSplits:
    """The splits to read."""

    names: dict[str, str] = field(default_factory=dict)
    """The dataset's spelling of each split by its name here, train first; empty without splits."""
    unread: tuple[str, ...] = ()
    """Splits that exist and were not requested, in the dataset's spelling."""

    def notes(self, where: str) -> list[str]:
        """Report the splits of the dataset `where` that have another name here."""
        renamed = [f"{own} is {name}" for name, own in self.names.items() if name != own]
        return [f"splits of {where}: {', '.join(renamed)}"] if renamed else []


def split_text(value: Any) -> str:
    """Return the name of a split as text; arrays and attributes hold bytes, numbers and flags too."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value).strip()


def role_of(name: str) -> str | None:
    """Return ``train``, ``test`` or ``val`` for a usual name of such a split in any capitalization, else None."""
    words = [word for word in _words(name) if word not in _FILLERS]
    return _ROLE_OF.get(words[0]) if len(words) == 1 else None


def roles_of(names: Sequence[str]) -> dict[str, str | None]:
    """Return the role of each name in a list of names that stand side by side.

    A word for a split also counts beside other words if the same words stand with train and with another split:
    ``seg_train`` and ``seg_test`` are splits, ``train_station`` and ``bus_station`` are not. ``test1`` is the test split of
    a train split that has no other.
    """
    roles = {name: role_of(name) for name in names}
    if TRAIN in roles.values() and TEST not in roles.values():
        roles |= {name: TEST for name in names if role_of(_NUMBER.sub("", name)) == TEST}
    beside: dict[tuple[str, ...], dict[str, str]] = {}
    for name in (name for name, role in roles.items() if role is None):
        words = _words(name)
        role_words = [word for word in words if word in _ROLE_OF]
        if len(role_words) == 1:
            rest = tuple(word for word in words if word != role_words[0])
            beside.setdefault(rest, {})[name] = _ROLE_OF[role_words[0]]
    for same in beside.values():
        if TRAIN in same.values() and len(set(same.values())) > 1:
            roles |= same
    return roles


def splits_beside(path: Path) -> list[str]:
    """Return the files or folders beside the train split of a dataset that are its other splits by their names.

    A user who names ``data/train`` may not know that ``data/test`` is then not read.
    """
    here = os.path.abspath(path)
    try:
        names = sorted(name for name in os.listdir(os.path.dirname(here)) if not name.startswith("."))
    except OSError:
        return []
    parts = [(name, *os.path.splitext(name)) for name in names]
    same = {name: stem for name, stem, extension in parts if extension == os.path.splitext(here)[1]}
    roles = roles_of(list(dict.fromkeys(same.values())))
    own = same.get(os.path.basename(here), "")
    if roles.get(own) != TRAIN:
        return []
    # Shards of one split differ in their numbers.
    rest = [word for word in _words(own) if word not in _ROLE_OF and not word.isdigit()]
    return [
        name
        for name, stem in same.items()
        if roles[stem] in (TEST, VALIDATION)
        and [word for word in _words(stem) if word not in _ROLE_OF and not word.isdigit()] == rest
    ]


def note_splits_beside(path: Path) -> list[str]:
    """Report the other splits beside a path that is read alone; see `splits_beside`."""
    names = splits_beside(path)
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"only {path.name} is read; beside it lies {shown}"]


def is_split_column(name: str) -> bool:
    """Return whether a column of this name holds the split of each sample, as a name or as a flag (``is_test``)."""
    plain = name.strip().casefold()
    return plain in SPLIT_COLUMNS or (_flag_role(name) is not None and plain not in _ROLE_OF)


def are_flags(values: Iterable[Any]) -> bool:
    """Return whether all values are 0 or 1, true or false, yes or no."""
    return {split_text(value).casefold() for value in set(values)} <= {*_YES, *_NO}


def name_the_only_split(values: Iterable[Any]) -> bool:
    """Return whether the distinct values of a column are all names of splits, one for train and one more at least."""
    roles = {role_of(split_text(value)) for value in set(values)}
    return None not in roles and TRAIN in roles and len(roles) > 1


def splits_of_column(column: str, values: Sequence[Any]) -> list[str]:
    """Return the split of every sample from a column of names, or of flags such as ``is_test``.

    A flag is 0 or 1, true or false, yes or no: ``is_train`` or ``train`` is train or test, ``is_test`` test or train,
    ``is_valid`` val or train.
    """
    texts = [split_text(value) for value in values]
    role = _flag_role(column)
    distinct = {text: text.casefold() for text in set(texts)}
    if role is None or not are_flags(distinct):
        return texts
    other = TEST if role == TRAIN else TRAIN
    meaning = {text: role if plain in _YES else other for text, plain in distinct.items()}
    return [meaning[text] for text in texts]


def find_split(name: str, existing: Sequence[str]) -> str:
    """Return the split that a name stands for: the split of exactly this name, or of its only other spelling.

    Raises:
        UnknownNameError: no split or several match; the message lists all splits.
    """
    if name in existing:
        return name
    same = [split for split in existing if split.strip().casefold() == name.strip().casefold()]
    role, roles = role_of(name), roles_of(existing)
    same = same or [split for split in existing if role is not None and roles[split] == role]
    if len(same) == 1:
        return same[0]
    raise UnknownNameError("split", name, existing)


def choose_splits(existing: Sequence[str], options: "DatasetOptions", where: str) -> ChosenSplits:
    """Choose the splits to read, by the options or by their names.

    ``train`` and ``test`` are the splits of these names in any spelling. Other splits may be missing only if the dataset
    has nothing but train, or is split anew (``options.resplit``).

    Args:
        existing: all splits of the dataset as it spells them, in order; none if it has no splits.
        options: the splits to train and test on, and whether everything is split anew.
        where: name or path of the dataset, for errors.

    Raises:
        RequestError: an option names a missing split, or both options name the same split.
        DatasetError: train or test cannot be told from the names; the message lists the names and the options.
    """
    if not existing:
        return ChosenSplits()
    roles = roles_of(existing)
    train = find_split(options.train_split, existing) if options.train_split else None
    tests = [find_split(name, existing) for name in options.test_splits]
    for name in tests:
        if name == train or (train is None and roles[name] == TRAIN):
            raise RequestError(f"--test-split {name}: what is trained on cannot be tested on")
    left = [name for name in existing if name not in (train, *tests)]
    if train is None:
        train = _only(TRAIN, left, roles, where)
    left = [name for name in left if name != train]
    names = {} if train is None else {TRAIN: train}
    if tests:
        names |= {name: name for name in tests}
    else:
        test = _only(TEST, left, roles, where)
        if test is None and options.resplit:
            return ChosenSplits(names | {name: name for name in left})
        if test is None and left:
            raise DatasetError(_no_test(existing, train, where))
        if test is not None:
            names[TEST] = test
    return ChosenSplits(names, tuple(name for name in left if name not in names.values()))


def _flag_role(column: str) -> str | None:
    return _ROLE_OF.get(_FLAG_PREFIX.sub("", column.strip().casefold()).removesuffix("_flag"))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: ``TrainImages2017`` is train and images."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [_SUFFIX.sub("", word) or word for word in re.split(r"[\W_]+", spaced.casefold()) if word]
    return [word for word in words if not re.fullmatch(r"(19|20)\d\d", word)]


def _only(role: str, names: Sequence[str], roles: Mapping[str, str | None], where: str) -> str | None:
    """Return the one split of a role; None if there is none."""
    same = [name for name in names if roles[name] == role]
    if len(same) > 1:
        raise DatasetError(
            f"{where} has more than one split for {role}: {', '.join(same[:20])}; name one with --{role}-split"
        )
    return same[0] if same else None


def _no_test(existing: Sequence[str], train: str | None, where: str) -> str:
    shown = ", ".join(existing[:20]) + (f" and {len(existing) - 20} more" if len(existing) > 20 else "")
    option = "--test-split" if train else "--train-split and --test-split"
    missing = TEST if train else f"{TRAIN} and no split {TEST}"
    return (
        f"{where} has no split {missing}; it has {shown}: name {'one' if train else 'them'} with {option}, or split it "
        "anew with --resplit"
    )
