"""Dataset sources by name. A new source is one file with a `Collection`, and one entry in `KINDS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from featcache.extract.sources.aliases import aliases
from featcache.extract.sources.argument import Argument
from featcache.extract.sources.base import Source
from featcache.extract.sources.collection import Collection
from featcache.extract.sources.dataset import DatasetOptions, SplitDataset
from featcache.extract.sources.digits import Digits
from featcache.store.errors import UnknownNameError
from featcache.store.progress import Reporter, Silent

Opener = Callable[[Argument, DatasetOptions, Reporter], Collection]


@dataclass(frozen=True)
class Kind:
    """A form that datasets come in."""

    example: str
    """How it is written."""
    module: str
    """Module of this package; it is imported when it is needed."""
    opener: str
    """Its `Opener`."""

    def open(self, argument: Argument, options: DatasetOptions, reporter: Reporter) -> Collection:
        """Open a dataset."""
        opener: Opener = getattr(import_module(f"{__name__}.{self.module}"), self.opener)
        return opener(argument, options, reporter)


KINDS = {
    "imagefolder": Kind("imagefolder:DIR", "imagefolder", "open_folder"),
    "wds": Kind("wds:DIR, or wds:train-{000..010}.tar?test=test-{000..002}.tar", "wds", "open_wds"),
    "hdf5": Kind("hdf5:FILE?images=x&labels=y", "hdf5", "open_hdf5"),
    "hf": Kind("hf:OWNER/NAME", "parquet", "open_hf"),
    "idx": Kind("idx:DIR", "idx", "open_idx"),
    "csv": Kind("csv:FILE", "csv_table", "open_csv"),
    "npz": Kind("npz:FILE", "npz", "open_npz"),
    "torchvision": Kind("torchvision:NAME", "torchvision_sets", "open_torchvision"),
}
DIGITS = "digits"


def dataset_names() -> Sequence[str]:
    """Everything that can stand for a dataset."""
    return (DIGITS, *aliases(), *(kind.example for kind in KINDS.values()))


def resolve_source(
    name: str, options: DatasetOptions | None = None, reporter: Reporter | None = None
) -> Source:
    """Return the source that `name` means: an alias, or ``KIND:PLACE``.

    Raises:
        UnknownNameError: there is no such dataset.
        RequestError, DatasetError: it cannot be used; see the sources.
    """
    options, reporter = options or DatasetOptions(), reporter or Silent()
    if name == DIGITS:
        return Digits(options)
    alias = aliases().get(name)
    if alias is not None:
        from featcache.extract.sources.paper_sets import open_alias

        return SplitDataset(open_alias(alias, options, reporter), options)
    kind, colon, text = name.partition(":")
    if colon and kind in KINDS:
        argument = Argument.parse(kind, text, KINDS[kind].example)
        return SplitDataset(KINDS[kind].open(argument, options, reporter), options)
    hint = f"(a folder of images is written imagefolder:{name})" if Path(name).is_dir() else ""
    valid = [f"{one}:" for one in KINDS] if colon else dataset_names()
    raise UnknownNameError("dataset", f"{kind}:" if colon else name, valid, hint)
