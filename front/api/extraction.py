"""`featcache.extract`."""

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.extraction.requests.request import ExtractRequest
from featcache.store.catalogue import remote_roots, roots
from featcache.store.parameters import PROGRESS, as_optional_path, parameter
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone
    from featcache.extraction.sources.base import Source


@frozen(kw_only=True, slots=False)
class ExtractCall(ExtractRequest):
    """A call of `featcache.extract`, or of the command; errors as for `ExtractRequest`."""

    root: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter(
            "Root in which caches are looked for and to which a new cache is written.",
            python_only="--root, which most commands have, may be repeated",
            default="$FEATCACHE_ROOT, else the user's cache folder",
        ),
    )
    force: bool = field(
        default=False,
        metadata=parameter("Extract even what a teammate has on a remote in FEATCACHE_ROOT.", "--force"),
    )
    backbone: "Backbone | None" = field(
        default=None,
        metadata=parameter(
            "Backbone of your own, made by `custom_backbone`; `model` is then just its name.",
            python_only="a backbone is a Python object",
        ),
    )
    source: "Source | None" = field(
        default=None,
        metadata=parameter(
            "Dataset of your own, made by `python_dataset`; `dataset` is then just its name.",
            python_only="such a dataset is a Python object",
        ),
    )
    progress: bool = field(default=True, metadata=PROGRESS)


@takes_parameters_of(ExtractCall)
def extract(call: ExtractCall) -> Cache:
    """Make sure that the tokens of a backbone on a dataset are cached, and open the cache.

    Raises:
        RequestError: the request is wrong; `UnknownNameError` for a name that does not exist.
        DatasetError: the dataset cannot be used.
        BackboneError: the backbone cannot be loaded or its features would be wrong.
        InterruptedRunError: Ctrl-C; what was committed stays, and the same call goes on.

    Example:
        >>> cache = featcache.extract("dinov2-vit-s-14", "imagefolder:photos")  # doctest: +SKIP
    """
    from featcache.extraction.run import extract as run_extract

    named = [] if call.root is None else [call.root]
    reporter = ConsoleReporter(quiet=not call.progress)
    result = run_extract(
        call,
        roots(named),
        backbone=call.backbone,
        source=call.source,
        reporter=reporter,
        remotes=[] if call.force else remote_roots(named),
    )
    for note in result.notes:
        reporter.message(f"note: {note}")
    return open_cache(result.path)
