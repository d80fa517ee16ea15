"""``featcache heads``: what can be trained on cached tokens."""

from typing import Any

import click

from featcache.console import print_json, print_table
from featcache.probe.heads import HEADS, HeadInfo

COLUMNS = (
    "head",
    "fitted",
    "layers",
    "tokens",
    "targets",
    "swept or set",
    "parameters",
    "what it is",
    "source",
)


@click.command("heads", epilog="\b\nExamples:\n  featcache heads\n  featcache heads --json\n")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def heads_command(as_json: bool) -> None:
    """List the heads: how each is fitted, its default layers and tokens, what it takes, how large it is, and where it comes from.

    "trained" heads are trained by the members of a protocol, "closed" ones are fitted by formula for every setting, "exact" ones by
    the exact solver, "auto" is the best of several. Parameters are given as a formula of T tokens, D width, C classes, L layers, K
    tokens a layer, and what is set with --option NAME=NUMBER.
    """
    heads = [info for info in HEADS.values() if info.listed]
    if as_json:
        print_json([_document(info) for info in heads])
    else:
        print_table(COLUMNS, [_row(info) for info in heads])


def _document(info: HeadInfo) -> dict[str, Any]:
    return {
        "head": info.name,
        "fitted": info.fitting,
        "layers": info.default_layers,
        "tokens": list(info.default_tokens),
        "targets": list(info.kinds),
        "dropout": info.has_dropout,
        "attention": info.has_attention,
        "options": dict(info.options),
        "swept": dict(info.swept),
        "parameters": info.size,
        "summary": info.summary,
        "source": info.source,
    }


def _row(info: HeadInfo) -> list[str]:
    settings = [f"{name}: {values}" for name, values in info.swept.items()]
    settings += [f"{name}={value or 'one a token'}" for name, value in info.options.items()]
    return [
        info.name,
        info.fitting,
        info.default_layers,
        "+".join(info.default_tokens),
        "all" if len(info.kinds) > 1 else info.kinds[0],
        "; ".join(settings) or ("dropout" if info.has_dropout else ""),
        info.size,
        info.summary,
        info.source,
    ]
