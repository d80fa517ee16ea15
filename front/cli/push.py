"""``featcache push``: a cache to where teammates find it."""

from pathlib import Path

import click

from featcache.api.sharing import push
from featcache.cli.options import common_options
from featcache.terminal.console import echo, format_duration, format_size, print_json

EPILOG = """\b
Examples:
  featcache push 0123456789ab s3://bucket/team
  featcache push flowers/vit-l-14-0123456789ab hf://org/name
  featcache push 0123456789ab ssh://host/data/caches
  featcache push 0123456789ab /nfs/team/caches

\b
Credentials are those of each store's own tools: AWS_PROFILE or AWS_ACCESS_KEY_ID ..., `hf auth login`,
~/.ssh, `gcloud auth application-default login`, AZURE_STORAGE_ACCOUNT_NAME ...
"""


@click.command("push", epilog=EPILOG)
@click.argument("cache")
@click.argument("remote")
@click.option("--force", is_flag=True, help="Replace other values that the remote has under the same key.")
@common_options
def push_command(cache: str, remote: str, force: bool, root: tuple[Path, ...], as_json: bool) -> None:
    """Copy a cache to a remote, where it counts when the last file has arrived.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY. REMOTE is s3://, gs://, az://, hf://, ssh://
    or a shared folder. What is there already does not move again.
    """
    done = push(cache, remote, force=force, root=root, progress=not as_json)
    if as_json:
        print_json(done.to_dict())
    elif done.there:
        echo(f"already there: {done.address}")
    else:
        echo(f"pushed {format_size(done.num_bytes)} in {done.files} files, {format_duration(done.seconds)}")
        echo(f"featcache pull {done.address}")
