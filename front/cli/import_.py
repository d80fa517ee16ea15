"""``featcache import``: features that people already have, as a cache."""

from contextlib import ExitStack
from pathlib import Path

import click

from featcache.cli.options import LocalPath, common_options
from featcache.store.catalogue import roots
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.layers import parse_tokens
from featcache.store.spec import FLOAT_DTYPES
from featcache.terminal.console import ConsoleReporter, echo, print_json

EPILOG = """\b
Examples:
  featcache import flowers.h5
  featcache import feats.h5 --features train/feats --features test/feats --labels train/y --labels test/y \\
      --dataset flowers --model my-vit
  featcache import folder --dataset flowers --model my-vit     # folder/train/layer_00.npy ... labels.npy, folder/test/...
"""


@click.command("import", epilog=EPILOG)
@click.argument("source", type=LocalPath())
@click.option("--dataset", help="Name of the dataset.  [default: that of an export]")
@click.option("--model", help="Name of the model.  [default: that of an export]")
@click.option(
    "--features", multiple=True, metavar="[SPLIT=]DATASET", help="Features in an HDF5 file; may be repeated."
)
@click.option(
    "--labels", multiple=True, metavar="[SPLIT=]DATASET", help="Labels in an HDF5 file; may be repeated."
)
@click.option(
    "--ids", multiple=True, metavar="[SPLIT=]DATASET", help="Sample ids in an HDF5 file; may be repeated."
)
@click.option("--tokens", default="cls", show_default=True, help="What the features are: cls, ap or cls+ap.")
@click.option("--dtype", help=f"Stored type: {', '.join(FLOAT_DTYPES)}.  [default: as it is]")
@click.option("--classes", type=LocalPath(), help="File with a class name on every line.")
@common_options
def import_command(
    source: Path,
    dataset: str | None,
    model: str | None,
    features: tuple[str, ...],
    labels: tuple[str, ...],
    ids: tuple[str, ...],
    tokens: str,
    dtype: str | None,
    classes: Path | None,
    root: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Make a cache of features from an HDF5 file or a folder of .npy or .pt files.

    An export of featcache becomes the very cache that it came from. Other features get a key of their own; their last
    layer is taken for the backbone's final one, the others are numbered from 0.
    """
    from featcache.formats.torch_files import open_tensor
    from featcache.store.convert.h5_files import open_h5
    from featcache.store.convert.import_files import folder_source
    from featcache.store.convert.import_h5 import h5_source
    from featcache.store.convert.import_selection import ImportSelection
    from featcache.store.convert.importing import import_source
    from featcache.store.convert.npy_rows import open_npy

    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise UnknownNameError("dtype", dtype, FLOAT_DTYPES)
    if not source.exists():
        raise RequestError(f"{source} does not exist")
    choice = ImportSelection(features, labels, ids, parse_tokens(tokens), dtype, _lines(classes))
    with ExitStack() as stack:
        if source.is_dir():
            openers = {".npy": open_npy, ".pt": open_tensor, ".pth": open_tensor}
            found = folder_source(source, choice, openers)
        else:
            found = h5_source(stack.enter_context(open_h5(source)), source, choice)
        if found.document is None and not (dataset and model):
            raise RequestError(
                f"{source} {found.foreign_because}: name it with --dataset NAME and --model NAME"
            )
        reporter = ConsoleReporter(quiet=as_json)
        result = import_source(found, roots(root), dataset=dataset, model=model, reporter=reporter)
    if as_json:
        print_json(
            {"path": str(result.path), "key": result.key, "cached": result.cached, "samples": result.samples}
        )
    else:
        echo(f"{'already there' if result.cached else 'cache'}: {result.path}")


def _lines(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    if not path.is_file():
        raise RequestError(
            f"{path} {'is not a regular file' if path.exists() else 'does not exist'} (--classes)"
        )
    try:
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 (byte {error.start}: {error.object[error.start : error.start + 1]!r}); save it as UTF-8"
        ) from None
    # Not splitlines, which also splits at U+2028 and form feeds.
    return lines[:-1] if lines[-1] == "" else lines
