"""The forward passes of a split: one for every view of its images, each a batch of its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.forward import Extractor, NotFiniteError, NumpyBatch
from featcache.extraction.sources.base import Sample
from featcache.store.arrays import ArrayInfo
from featcache.store.errors import BackboneError
from featcache.store.inventory import Inventory
from featcache.store.token_groups import of_view, split_view

MakeExtractor = Callable[[Backbone, list[ArrayInfo]], Extractor]


class ViewPasses:
    """Runs the forward passes of all views of a batch.

    Views never share a batch: so a view has the same bytes whether it was extracted with others or added alone.

    Args:
        extractors: the extractor of every view, by name; it fills arrays under their names without the view.
    """

    def __init__(self, extractors: Mapping[str, Extractor]) -> None:
        self._extractors = extractors
        self.at_once = max(extractor.at_once for extractor in extractors.values())
        """Passes that run at the same time."""

    def start(self, images: Mapping[str, Tensor]) -> Callable[[], NumpyBatch]:
        """Begin the passes of one batch; see `FeatureExtractor.start`.

        Args:
            images: the images ``[B, 3, S, S]`` of every view, by name.

        Returns:
            A function that waits for the values and returns all arrays of all views by name.
        """
        begun = {name: extractor.start(images[name]) for name, extractor in self._extractors.items()}

        def result() -> NumpyBatch:
            return {
                of_view(array, name): values
                for name, wait in begun.items()
                for array, values in wait().items()
            }

        return result

    def explain(self, images: Mapping[str, Tensor], samples: Sequence[Sample]) -> BackboneError:
        """Find the view with a value that is not finite; see `FeatureExtractor.explain`."""
        for name, extractor in self._extractors.items():
            try:
                extractor.start(images[name])()
            except NotFiniteError:
                error = extractor.explain(images[name], samples)
                return BackboneError(f"view {name}: {error}") if name else error
        return BackboneError(
            "the backbone gave values that are not finite, but not a second time; check the device"
        )

    def stop(self) -> None:
        """Let passes end that are under way and that nobody waits for any more."""
        for extractor in self._extractors.values():
            extractor.stop()


def view_passes(backbone: Backbone, inventory: Inventory, make: MakeExtractor) -> dict[str, ViewPasses]:
    """Return the passes of every split; views and splits that need the same arrays at one input size share an extractor.

    Args:
        backbone: the backbone; views of other input sizes run on `Backbone.at_size`.
        inventory: tells the arrays and the views.
        make: makes an extractor of a backbone and the arrays to fill.
    """
    made: dict[tuple[object, ...], Extractor] = {}

    def shared(view: str, wanted: list[ArrayInfo]) -> Extractor:
        size = inventory.views[view].input_size if view else None
        contents = (size, *((array.name, array.layers, array.tokens) for array in wanted))
        if contents not in made:
            made[contents] = make(backbone if size is None else backbone.at_size(size), wanted)
        return made[contents]

    return {
        split.name: ViewPasses(
            {view: shared(view, wanted) for view, wanted in by_view(split.arrays.values()).items()}
        )
        for split in inventory.splits.values()
    }


def by_view(arrays: Iterable[ArrayInfo]) -> dict[str, list[ArrayInfo]]:
    """Return the token arrays of every view, by its name (empty for the plain one), under their names without the view."""
    found: dict[str, list[ArrayInfo]] = {}
    for array in arrays:
        if array.layers:
            view, name = split_view(array.name)
            found.setdefault(view, []).append(replace(array, name=name))
    return dict(sorted(found.items()))
