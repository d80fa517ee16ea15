"""The command line. One file per command; each calls one library function and prints what it returns."""

import errno
import logging
import sys
import traceback
from pathlib import Path

import click

from featcache.cli.datasets import datasets_command
from featcache.cli.doctor import doctor_command
from featcache.cli.export import export_command
from featcache.cli.extract import extract_command
from featcache.cli.gc import gc_command
from featcache.cli.heads import heads_command
from featcache.cli.import_ import import_command
from featcache.cli.info import info_command
from featcache.cli.ls import ls_command
from featcache.cli.models import models_command
from featcache.cli.plot import plot_command
from featcache.cli.probe import probe_command
from featcache.cli.protocols import protocols_command
from featcache.cli.pull import pull_command
from featcache.cli.push import push_command
from featcache.cli.results import results_command
from featcache.cli.rm import rm_command
from featcache.cli.verify import verify_command
from featcache.store.errors import FeatcacheError
from featcache.store.text import printable


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="featcache")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Cache all-layer token features of frozen vision transformers, then train heads on them in minutes.

    \b
    featcache extract --model dinov2-vit-s-14 --dataset imagefolder:photos
    featcache probe --head attentive
    """


for _command in (
    extract_command,
    probe_command,
    results_command,
    plot_command,
    ls_command,
    info_command,
    verify_command,
):
    cli.add_command(_command)
for _command in (push_command, pull_command):
    cli.add_command(_command)
for _command in (rm_command, gc_command, export_command, import_command):
    cli.add_command(_command)
for _command in (models_command, datasets_command, heads_command, protocols_command):
    cli.add_command(_command)
cli.add_command(doctor_command)


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    if "--debug" not in sys.argv:
        # Libraries log to stderr as they see fit, dozens of lines without a network; what fails raises as well.
        logging.disable(logging.CRITICAL)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except FeatcacheError as error:
        _fail(str(error), error.exit_status)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _fail(_describe_os_error(error), 1)


def _fail(message: str, status: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    text = printable(message, keep="\n")
    print(f"featcache: {text}", file=sys.stderr)
    sys.exit(status)


_ROOM = "make room and run the same command again, what was committed is kept"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EIO: "the disk failed; when it works again, run the same command again, what was committed is kept",
    errno.EROFS: "name a folder that can be written to",
}


def _describe_os_error(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    message = f"{error.strerror or error}{where}"
    remedy = _REMEDIES.get(error.errno or 0)
    if error.errno == errno.ENOENT and isinstance(error.filename, str):
        gone = [folder for folder in Path(error.filename).absolute().parents if not folder.exists()]
        remedy = f"{gone[-1]} does not exist; was it moved or unmounted?" if gone else None
    return f"{message}; {remedy}" if remedy else message
