"""Commands of the tests' own beside featcache's: same entry point, same error lines, same exit status.

``write`` stands for an extraction without a backbone: it gives prepared batches to the real writer, and starts at once.
"""

import json
from pathlib import Path

import click

from featcache.cli import cli, main
from featcache.store.errors import CacheCompletedError
from featcache.store.journal import Plan
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import PROVENANCE, check_partial, fill_block, make_content, make_plan


@cli.group("made")
@click.option("--samples", default="null", help="Rows per split, as JSON.")
@click.option("--layers", default=3)
@click.pass_context
def made(context: click.Context, samples: str, layers: int) -> None:
    """Work on the cache of `make_plan` and `make_content`."""
    context.obj = make_plan(json.loads(samples), num_layers=layers)


@made.command("write")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--pause", default=0.0, help="Seconds after every batch.")
@click.pass_obj
def write_command(plan: Plan, directory: Path, pause: float) -> None:
    """Write the cache; says when it is ready, and every block that it commits."""
    content = make_content(plan)
    try:
        # A checkpoint at every batch: kills and failures fall into those too.
        with CacheWriter(directory, plan, checkpoint_s=0.0) as writer:
            print("ready", flush=True)
            while True:
                while (block := writer.claim()) is not None:
                    fill_block(block, content, 32, pause_s=pause)
                    writer.commit(block)
                    print(block.block.split, block.block.index, flush=True)
                if not writer.wait():
                    break
            writer.finish(PROVENANCE, "# card\n")
    except CacheCompletedError:
        pass


@made.command("look")
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def look_command(plan: Plan, directory: Path) -> None:
    """Read the cache, complete or not, and print how many rows are there."""
    print(check_partial(open_cache(directory, allow_partial=True), make_content(plan)))


if __name__ == "__main__":
    main()
