"""Import names of version 0.1.0, which work with a warning until version 0.3.0.

`featcache.extract` and `featcache.probe` were packages as well as functions. They are functions now, and their modules
lie in `featcache.extraction` and `featcache.probing`.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc takes longer to import than everything else here

P = ParamSpec("P")
R = TypeVar("R")

FUNCTIONS = {"featcache.extract": "featcache.extraction", "featcache.probe": "featcache.probing"}
"""Packages of before that are functions now, and the packages that hold their modules."""

MODULES = {
    "featcache.borrowing": "featcache.probing.requests.borrowing",
    "featcache.cli.listing": "featcache.cli.ls",
    "featcache.cli.training": "featcache.cli.probe",
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
    "featcache.probing.training.held_out": "featcache.probing.scoring.held_out",
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

PUBLIC = {
    "featcache.extract.backbones.custom": "custom_backbone and Parts",
    "featcache.extract.sources.sequences": "python_dataset",
    "featcache.probe.dataset": "CachedSamples and ShuffledBatches",
    "featcache.probe.estimators": "HeadProbe, HeadRegressor, LinearProbe and AttentiveProbe",
    "featcache.probe.results": "ResultRow and read_confusion",
}
"""Modules that the docs of version 0.1.0 named, and the public names that stand for them."""


def new_name(name: str) -> str | None:
    """Return the present name of a module of version 0.1.0; None for a name that did not change."""
    for old, new in FUNCTIONS.items():
        if name.startswith(f"{new}."):
            return None  # a present name, whichever module had it in the tables
        if name.startswith(f"{old}."):
            name = new + name.removeprefix(old)
            return MODULES.get(name, name)
    return MODULES.get(name)


class _FormerPackage(ModuleType):
    """Stands in `sys.modules` for a package that is a function now, so that its modules are found."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function, as the package could be called."""
        return _function_of(self.__name__)(*args, **options)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; a module that was imported becomes one of the function as well.

        After ``import featcache.probe.estimators``, Python looks for ``estimators`` in `featcache.probe`.
        """
        super().__setattr__(name, value)
        if isinstance(value, ModuleType):
            setattr(_function_of(self.__name__), name, value)


class _Root(ModuleType):
    """The package `featcache`, once an old name was imported: its functions stay what they are."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but leave a function where Python would put the package that has its name."""
        if not isinstance(value, _FormerPackage):
            super().__setattr__(name, value)


class _Loader(Loader):
    """Loads a module of before as the present one, so that classes are the same under both names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the present module.

        Raises:
            ModuleNotFoundError: there was no such module in version 0.1.0.
        """
        new = new_name(spec.name)
        assert new is not None  # else there would be no spec
        try:
            module = import_module(new)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{new}.".startswith(f"{error.name}."):
                raise  # a library that is not installed
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from None
        names = PUBLIC.get(spec.name)
        _warn(
            f"import {names} from featcache" if names else f"{spec.name} is the private module {new} now",
            spec.name,
        )
        # The import system is about to replace it, and `importlib.reload` goes by it.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; it was executed under its present name."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType | None:
        """Return the code of the present module, for ``python -m``."""
        from importlib.util import find_spec

        spec = find_spec(new_name(name) or name)
        code: CodeType | None = spec.loader.get_code(spec.name) if spec else None  # type: ignore[union-attr]
        return code


class _PackageLoader(Loader):
    """Loads the stand-in for a package that is a function now."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the stand-in."""
        root = sys.modules["featcache"]
        root.__class__ = _Root
        _warn(f"{spec.name} is a function now; `import featcache` is enough to call it", spec.name)
        return _FormerPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be executed."""


class _Finder:
    """Finds the names of before; everything else is left to the other finders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load `name`; None if it is no name of before."""
        if not name.startswith("featcache."):
            return None
        if name in FUNCTIONS:
            return ModuleSpec(name, _PackageLoader(), is_package=True)
        return None if new_name(name) is None else ModuleSpec(name, _Loader())


def install() -> None:
    """Let Python find the names of before; once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First: the usual finder would load a second copy of a module below a package that bears two names.
        sys.meta_path.insert(0, _Finder())


def former_module(package: str, present: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that was a module in version 0.1.0.

    Args:
        package: name of the package.
        present: name of the module that holds what was in the former one.
    """

    def attribute(name: str) -> Any:
        if name.startswith("__"):  # Python and its tools look for many of these
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(present), name)
        except AttributeError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        _warn(f"{package}.{name} is {present}.{name} now", f"{package}.{name}")
        setattr(sys.modules[package], name, value)  # so that there is one warning
        return value

    return attribute


def _function_of(package: str) -> Any:
    return getattr(sys.modules["featcache"], package.rpartition(".")[2])


def _warn(message: str, name: str) -> None:
    # From the code that imports: this function, its caller and the import system do not count.
    warnings.warn(f"{message}; the name {name} goes with version 0.3.0", DeprecationWarning, stacklevel=3)


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments by their names of version 0.1.0, with a warning.

    Args:
        names: the present name of each argument, by its name of before.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            # Both names at once are an error, which Python reports.
            given = {*options, *function.__code__.co_varnames[: len(args)]}
            for old in [old for old, new in names.items() if old in options and new not in given]:
                warnings.warn(
                    f"{function.__name__}() takes {names[old]} instead of {old}; the name {old} goes with version 0.3.0",
                    DeprecationWarning,
                    stacklevel=2,
                )
                options[names[old]] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate
