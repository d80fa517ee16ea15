"""Import names of version 0.1.0, which work with a warning until version 0.3.0.

`featcache.extract` and `featcache.probe` were packages as well as functions. They are functions now, and their modules
lie in `featcache.extraction` and `featcache.probing`.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FUNCTIONS = {"featcache.extract": "featcache.extraction", "featcache.probe": "featcache.probing"}
"""Packages of before that are functions now, and where their modules are."""

MODULES = {
    "featcache.borrowing": "featcache.probing.requests.borrowing",
    "featcache.console": "featcache.terminal.console",
    "featcache.extraction.answers": "featcache.extraction.cached.answers",
    "featcache.extraction.batch_size": "featcache.extraction.running.batch_size",
    "featcache.extraction.compiled": "featcache.extraction.forward_pass.compiled",
    "featcache.extraction.contact_sheet": "featcache.extraction.decoding.contact_sheet",
    "featcache.extraction.contents": "featcache.extraction.requests.feature_selection",
    "featcache.extraction.dataset_card": "featcache.extraction.provenance.dataset_card",
    "featcache.extraction.dataset_list": "featcache.extraction.sources.listing",
    "featcache.extraction.device": "featcache.devices.choice",
    "featcache.extraction.estimate": "featcache.extraction.planning.estimate",
    "featcache.extraction.extractors": "featcache.extraction.forward_pass.extractors",
    "featcache.extraction.forward": "featcache.extraction.forward_pass.forward",
    "featcache.extraction.freshness": "featcache.extraction.cached.freshness",
    "featcache.extraction.hub": "featcache.store.hub",
    "featcache.extraction.images": "featcache.extraction.decoding.images",
    "featcache.extraction.lanes": "featcache.extraction.forward_pass.replicas",
    "featcache.extraction.model_list": "featcache.extraction.models.listing",
    "featcache.extraction.model_table": "featcache.extraction.models.table",
    "featcache.extraction.models": "featcache.extraction.models.names",
    "featcache.extraction.names": "featcache.extraction.provenance.public_names",
    "featcache.extraction.observed": "featcache.extraction.decoding.observed",
    "featcache.extraction.pipeline": "featcache.extraction.running.pipeline",
    "featcache.extraction.pixels": "featcache.extraction.sources.pixels",
    "featcache.extraction.planning": "featcache.extraction.planning.inventory",
    "featcache.extraction.prefetch": "featcache.extraction.decoding.prefetch",
    "featcache.extraction.provenance": "featcache.extraction.provenance.document",
    "featcache.extraction.remaining": "featcache.store.writing.pending",
    "featcache.extraction.replicas": "featcache.extraction.forward_pass.replicas",
    "featcache.extraction.request": "featcache.extraction.requests.request",
    "featcache.extraction.retry": "featcache.extraction.cached.retry",
    "featcache.extraction.rgb": "featcache.extraction.decoding.rgb",
    "featcache.extraction.selftest": "featcache.extraction.forward_pass.selftest",
    "featcache.extraction.sources.card_licence": "featcache.extraction.sources.card_license",
    "featcache.extraction.sources.places": "featcache.extraction.sources.data_folders",
    "featcache.extraction.speed": "featcache.extraction.running.speed",
    "featcache.extraction.summary": "featcache.extraction.provenance.summary",
    "featcache.extraction.taps": "featcache.extraction.forward_pass.taps",
    "featcache.extraction.teammates": "featcache.store.transfer.remote_lookup",
    "featcache.extraction.unfinished": "featcache.extraction.running.unfinished",
    "featcache.probing.dataset": "featcache.probing.inputs.dataset",
    "featcache.probing.heads.closed": "featcache.probing.heads.closed_form",
    "featcache.probing.heads.contract": "featcache.probing.head_contract",
    "featcache.probing.inputs.stages": "featcache.probing.inputs.transforms",
    "featcache.probing.kept": "featcache.probing.run_output",
    "featcache.probing.predictions": "featcache.probing.results.predictions",
    "featcache.probing.protocol": "featcache.probing.protocols.protocol",
    "featcache.probing.protocol_files": "featcache.probing.protocols.files",
    "featcache.probing.records": "featcache.probing.results.records",
    "featcache.probing.request": "featcache.probing.requests.request",
    "featcache.probing.results": "featcache.probing.results.rows",
    "featcache.probing.saved": "featcache.probing.results.saved_head",
    "featcache.probing.selection": "featcache.probing.inputs.selection",
    "featcache.probing.table": "featcache.probing.requests.tables",
    "featcache.probing.training.closed": "featcache.probing.training.closed_form",
    "featcache.probing.training.competition": "featcache.probing.training.auto_strategy",
    "featcache.probing.training.losses": "featcache.probing.scoring.losses",
    "featcache.probing.training.memory": "featcache.probing.inputs.memory",
    "featcache.probing.training.precision": "featcache.devices.precision",
    "featcache.probing.training.scratch": "featcache.probing.heads.scratch",
    "featcache.probing.training.whole": "featcache.probing.training.full_batch",
    "featcache.probing.trials": "featcache.probing.repetitions",
    "featcache.store.catalogue.leftovers": "featcache.store.catalogue.stale_files",
    "featcache.store.checking.strangers": "featcache.store.checking.unexpected_files",
    "featcache.store.convert.choice": "featcache.store.convert.import_selection",
    "featcache.store.held": "featcache.store.partial_copy",
    "featcache.store.plain": "featcache.store.regular_files",
    "featcache.store.reading.machine": "featcache.store.machine",
    "featcache.store.transfer.address": "featcache.store.address",
    "featcache.store.transfer.flight": "featcache.store.network.concurrency",
    "featcache.store.transfer.http_client": "featcache.store.network.http_client",
    "featcache.store.transfer.mending": "featcache.store.transfer.repair",
    "featcache.store.transfer.patience": "featcache.store.network.timeouts",
    "featcache.store.transfer.plan": "featcache.store.transfer.selection",
    "featcache.store.transfer.redaction": "featcache.store.redaction",
    "featcache.store.transfer.sending": "featcache.store.transfer.remotes.sending",
    "featcache.torch_files": "featcache.formats.torch_files",
}
"""Modules that changed their place or name in another way than by the name of their package."""


def new_name(name: str) -> str | None:
    """Return the present name of a module of version 0.1.0; None for a name that did not change."""
    if name in MODULES:
        return MODULES[name]
    package, _, rest = name.removeprefix("featcache.").partition(".")
    moved = FUNCTIONS.get(f"featcache.{package}")
    if moved is None or not rest:
        return None
    return MODULES.get(f"{moved}.{rest}", f"{moved}.{rest}")


class _Alias(Loader):
    """Loads a name of before as what bears the present name, so that classes are the same under both."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name in FUNCTIONS:
            function: ModuleType = getattr(import_module("featcache"), spec.name.rpartition(".")[2])
            # Importing a submodule sets it as an attribute of the parent's entry in sys.modules, and looks for the
            # submodule along the parent's __path__. A function can have both.
            function.__path__ = []
            return function
        return import_module(new_name(spec.name) or spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do: the module was executed under its present name."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("featcache."):
            return None
        if name in FUNCTIONS:
            return ModuleSpec(name, _Alias(), is_package=True)
        new = new_name(name)
        if new is None:
            return None
        warnings.warn(
            f"{name} is {new} now; the old name goes with version 0.3.0", DeprecationWarning, stacklevel=2
        )
        return ModuleSpec(name, _Alias(), is_package=False)


def install() -> None:
    """Let Python find the names of before; once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
