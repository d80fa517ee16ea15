"""The command line. One file per command; each calls one library function and prints what it returns."""

import errno
import logging
import os
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from featcache.store.catalogue.entries import ROOT_VARIABLE
from featcache.store.errors import FeatcacheError, UnknownNameError
from featcache.store.machine import allow_open_files
from featcache.store.redaction import redacted_lines, remember_logins
from featcache.terminal.streams import echo_error, guard_streams

COMMANDS = (
    "convert",
    "datasets",
    "doctor",
    "export",
    "extract",
    "gc",
    "heads",
    "import",
    "info",
    "label",
    "ls",
    "models",
    "plot",
    "probe",
    "protocols",
    "pull",
    "push",
    "results",
    "rm",
    "verify",
)


class Commands(click.Group):
    """Imports a command when it is asked for, so that `ls` need not wait for what `probe` is made of."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command ``name_command`` of the module called ``name``."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"featcache.cli.{'import_' if cmd_name == 'import' else cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with.

        Raises:
            UnknownNameError: there is none of this name; click would look for similar ones among what is imported.
        """
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownNameError("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; click would end with 1, as if the work had failed, where nobody reads the output."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeftError from error


class _ReaderLeftError(Exception):
    """The reader of the output, such as ``head -1``, has closed it."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="featcache")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Cache all-layer token features of frozen vision transformers, then train heads on them in minutes.

    \b
    featcache extract --model dinov2-vit-s-14 --dataset imagefolder:photos
    featcache probe --head attentive
    """


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.

    141 where the reader of the output has left, as `cat` and `grep` end then: 0 would tell a script, for example, that
    `verify` found all caches intact.
    """
    for argument in (*sys.argv[1:], os.environ.get(ROOT_VARIABLE, "")):
        remember_logins(argument)
    guard_streams()
    allow_open_files()
    if "--debug" not in sys.argv:
        # Libraries log to stderr as they see fit, dozens of lines without a network; what fails raises as well.
        logging.disable(logging.CRITICAL)
    try:
        try:
            cli.main(standalone_mode=False)
        finally:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show(file=sys.stderr)  # the current stderr, since click keeps an earlier one
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except FeatcacheError as error:
        _fail(str(error), error.exit_status)
    except (_ReaderLeftError, BrokenPipeError):
        # What is still in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _fail(_describe_os_error(error), 1)


def _fail(message: str, status: int) -> None:
    if "--debug" in sys.argv:
        print(redacted_lines(traceback.format_exc()), file=sys.stderr)
    echo_error(f"featcache: {message}")
    sys.exit(status)


_ROOM = "make room and run the same command again, what was committed is kept"
_FILES = "allow this process more open files, as `ulimit -n 4096` does, and run the same command again"
_REMEDIES = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EIO: "the disk failed; when it works again, run the same command again, what was committed is kept",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name another place, or have its owner change the permissions",
    errno.ECONNREFUSED: "nothing answers there; is the address right, and the server running?",
}


def _describe_os_error(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    message = f"{error.strerror or error}{where}"
    remedy = _REMEDIES.get(error.errno or 0)
    if isinstance(error, socket.gaierror):  # its numbers are not those of `errno`
        remedy = "is the name of the host right, and is there a network?"
    if error.errno == errno.ENOENT and isinstance(error.filename, str):
        gone = [folder for folder in Path(error.filename).absolute().parents if not folder.exists()]
        remedy = f"{gone[-1]} does not exist; was it moved or unmounted?" if gone else None
    return f"{message}; {remedy}" if remedy else message
