"""Dataset sources by name. A new source is one file with a class that fits `Source`, and one entry in `resolve_source`."""

from pathlib import Path

from featcache.extract.sources.base import Source
from featcache.extract.sources.digits import Digits
from featcache.extract.sources.imagefolder import ImageFolder
from featcache.store.errors import RequestError, UnknownNameError

DATASETS = ("digits", "imagefolder:DIR")


def resolve_source(name: str, split_seed: int = 0, limit: int | None = None) -> Source:
    """Return the source that `name` means.

    Raises:
        UnknownNameError: there is no such dataset.
        RequestError, DatasetError: it cannot be used; see the sources.
    """
    kind, _, argument = name.partition(":")
    if name == "digits":
        return Digits(split_seed, limit)
    if kind == "imagefolder":
        if not argument:
            raise RequestError("imagefolder needs a folder: imagefolder:DIR")
        return ImageFolder(Path(argument).expanduser(), split_seed, limit)
    hint = f"(a folder of images is written imagefolder:{name})" if Path(name).is_dir() else ""
    raise UnknownNameError("dataset", name, DATASETS, hint)
