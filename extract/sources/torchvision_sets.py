"""``torchvision:NAME``: the datasets of torchvision, downloaded by it into the data folder."""

import inspect
from typing import Any

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.data_folders import data_folder
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.sequences import PythonDataset
from featcache.extraction.sources.split_names import TEST, TRAIN
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.progress import Reporter


def open_torchvision(argument: Argument, options: DatasetOptions, reporter: Reporter) -> PythonDataset:
    """Open a dataset of torchvision; its files are in ``--data DIR``, or in the data folder, else it downloads them.

    Raises:
        UnknownNameError: torchvision has no such dataset.
        RequestError: it is no dataset of images and labels, or torchvision unpickles it.
        DatasetError: it cannot be had.
    """
    argument.require_fields()
    from torchvision import datasets  # with torch, a second or two

    names = [
        name
        for name in datasets.__all__
        if inspect.isclass(getattr(datasets, name))
        and issubclass(getattr(datasets, name), datasets.VisionDataset)
        and "root" in inspect.signature(getattr(datasets, name)).parameters
        and not name.endswith("Folder")
    ]
    if argument.place not in names:
        raise UnknownNameError("dataset of torchvision", argument.place, names)
    made = getattr(datasets, argument.place)
    if "pickle" in vars(inspect.getmodule(made)):
        raise RequestError(
            f"torchvision reads {argument.place} with pickle, which featcache never does (a pickle can run anything); use "
            "an alias such as cifar10, or the set in another form"
        )
    root = str(options.data or data_folder() / "torchvision")
    splits = {split: _open_split(made, root, split) for split in options.own_splits}
    found = {split: dataset for split, dataset in splits.items() if dataset is not None}
    if not found:
        raise RequestError(f"{argument.place} of torchvision has no splits that can be chosen by name")
    if TEST not in found and options.test_splits == ():
        _refuse_other_splits(made, root, options)
        found = {"": found[TRAIN]}
    targets = {split: _targets(dataset) for split, dataset in found.items()}
    known = {split: values for split, values in targets.items() if values is not None}
    first = next(iter(found.values()))
    classes = [str(name) for name in getattr(first, "classes", ())]
    return PythonDataset(argument.place.lower(), found, known, {}, classes, {}, options, "torchvision")


def _open_split(made: Any, root: str, split: str) -> Any:
    """Open one split, downloaded if necessary; None if the class has no such split."""
    parameters = inspect.signature(made).parameters
    options: dict[str, Any] = {}
    if "split" in parameters:
        options["split"] = split
    elif "train" in parameters and split in (TRAIN, TEST):
        options["train"] = split == TRAIN
    elif split != TRAIN:
        return None
    try:
        return made(root, **options)
    except ValueError:  # no such split, in torchvision's words
        return None
    except (RuntimeError, OSError, TypeError) as missing:
        if "download" not in parameters:
            raise DatasetError(
                f"{made.__name__} cannot be had: {_line(missing)}; put its files into {root}"
            ) from None
    try:
        return made(root, download=True, **options)
    except (RuntimeError, OSError) as error:
        raise DatasetError(
            f"{made.__name__} could not be downloaded ({_line(error)}); put its files into {root}, or name their folder "
            "with --data DIR"
        ) from None


def _refuse_other_splits(made: Any, root: str, options: DatasetOptions) -> None:
    """Refuse to split train anew where the class has a split of another name, such as ``val``."""
    if "split" not in inspect.signature(made).parameters or options.resplit:
        return
    try:
        made(root, split=TEST)
    except ValueError as error:
        raise DatasetError(
            f"{made.__name__} has no split test ({_line(error)}); name one with --test-split, or split train anew with "
            "--resplit"
        ) from None
    except (RuntimeError, OSError, TypeError):  # the split exists, its files do not
        return


def _targets(dataset: Any) -> Any:
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return values
    return None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
