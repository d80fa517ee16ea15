"""Dataset sources by name. A new source is one file with a `Collection`, and one entry in `SOURCE_TYPES`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from featcache.extraction.sources.aliases import aliases
from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.collection import Collection
from featcache.extraction.sources.dataset import SplitDataset
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.digits import Digits
from featcache.extraction.sources.file_states import containers_of
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnknownNameError
from featcache.store.progress import Reporter, Silent

Opener = Callable[[Argument, DatasetOptions, Reporter], Collection]


@dataclass(frozen=True)
class SourceType:
    """A form that datasets come in."""

    example: str
    """Example of the name on the command line."""
    module: str
    """Module of this package; it is imported when it is needed."""
    opener: str
    """Its `Opener`."""
    takes: tuple[str, ...] = ()
    """Options that it has a meaning for, besides those of all: ``data``, ``revision``."""

    def open(self, argument: Argument, options: DatasetOptions, reporter: Reporter) -> Collection:
        """Open a dataset.

        Raises:
            RequestError: an option that means nothing here, or as the source says.
        """
        refuse_options(argument.source_type, options, self.takes)
        opener: Opener = getattr(import_module(f"{__name__}.{self.module}"), self.opener)
        return opener(argument, options, reporter)


SOURCE_TYPES = {
    "imagefolder": SourceType("imagefolder:DIR", "imagefolder", "open_folder"),
    "wds": SourceType("wds:DIR, or wds:train-{000..010}.tar?test=test-{000..002}.tar", "wds", "open_wds"),
    "hdf5": SourceType("hdf5:FILE?images=x&labels=y", "hdf5", "open_hdf5"),
    "hf": SourceType("hf:OWNER/NAME", "parquet", "open_hf", ("data", "revision")),
    "idx": SourceType("idx:DIR", "idx", "open_idx"),
    "csv": SourceType("csv:FILE", "csv_table", "open_csv"),
    "npz": SourceType("npz:FILE", "npz", "open_npz"),
    "torchvision": SourceType("torchvision:NAME", "torchvision_sets", "open_torchvision", ("data",)),
}
DIGITS = "digits"


def refuse_options(dataset: str, options: DatasetOptions, taken: Sequence[str] = ()) -> None:
    """Refuse options of which a source would take no notice.

    Raises:
        RequestError: one is given.
    """
    for option in ("data", "revision"):
        if getattr(options, option) is not None and option not in taken:
            raise RequestError(
                f"--{option} means nothing for {dataset}; it is for the paper's datasets by name, and hf:"
            )


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
        refuse_options(name, options)
        return Digits(options)
    alias = aliases().get(name)
    source_type, colon, text = name.partition(":")
    try:
        if alias is not None:
            from featcache.extraction.sources.paper_sets import open_alias

            return SplitDataset(open_alias(alias, options, reporter), options)
        if colon and source_type in SOURCE_TYPES:
            argument = Argument.parse(source_type, text, SOURCE_TYPES[source_type].example)
            collection = SOURCE_TYPES[source_type].open(argument, options, reporter)
            collection.containers = containers_of(argument.path)
            return SplitDataset(collection, options)
    except FeatcacheError:
        raise
    except OSError as error:  # a failing disk, or a folder without read permission
        path = error.filename or name
        raise DatasetError(f"{path} cannot be read ({error.strerror or error})") from error
    if colon:
        raise UnknownNameError("dataset", f"{source_type}:", [f"{name}:" for name in SOURCE_TYPES])
    hint = f"imagefolder:{name}" if os.path.isdir(name) else "imagefolder:DIR, csv:FILE, ..."
    raise UnknownNameError("dataset", name, (DIGITS, *aliases()), f"(one's own images are written {hint})")
