"""``featcache heads``: what can be trained on cached tokens."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from featcache.cli.options import output_options
from featcache.probing.heads import HEADS, HeadInfo, get_head
from featcache.terminal.console import print_document, print_json, print_table

COLUMNS = ("head", "fitted", "default tokens", "takes, or sweeps over", "parameters", "source")
NUMERIC = ("parameters",)
EXAMPLE = {"T": 24, "D": 768, "C": 100, "N": 10_000, "L": 12, "K": 2, "num_heads": 24}
"""Class token and average of a ViT-B, 100 classes."""


@click.command("heads", epilog="\b\nExamples:\n  featcache heads\n  featcache heads efficient\n")
@click.argument("name", default="")
@output_options
def heads_command(name: str, as_json: bool) -> None:
    """List the heads, or tell what there is to know of NAME, formula included.

    "trained" heads are trained by the members of a protocol, "closed" ones are fitted by formula for every setting, "exact" ones by
    the exact solver, "auto" is the best of several, "layer" is fitted to the best single layer, "zero-shot" takes the
    text tower of the model. What a head takes is set with --option NAME=NUMBER. Parameters are those for
    class token and average of all layers of a ViT-B and 100 classes; for last, cls where that is the default.
    """
    heads = [get_head(name)] if name else [info for info in HEADS.values() if info.listed]
    if as_json:
        print_json([_document(info) for info in heads])
    elif name:
        print_document(_describe(heads[0]) + "\n")
    else:
        print_table(COLUMNS, [_row(info) for info in heads], numeric=NUMERIC)


def _describe(info: HeadInfo) -> str:
    # Read, not imported: torch takes seconds.
    module = find_spec(info.factory.partition(":")[0])
    text = "" if module is None or module.origin is None else Path(module.origin).read_text(encoding="utf-8")
    lines = {
        "fitted": info.fitting,
        "tokens": f"{info.default_layers}, {'+'.join(info.default_tokens)} by default",
        "targets": ", ".join(info.kinds),
        "takes": _settings(info) or "nothing",
        "parameters": info.size,
        "source": info.source,
    }
    listed = "\n".join(f"{name + ':':12}{value}" for name, value in lines.items())
    return f"{info.name}: {info.summary}\n\n{listed}\n\n{ast.get_docstring(ast.parse(text)) or ''}".rstrip()


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
    sizes = EXAMPLE if info.default_layers == "all" else EXAMPLE | {"T": 1, "L": 1, "K": 1}
    number = info.num_parameters(**sizes)
    return [
        info.name,
        info.fitting,
        f"{info.default_layers}, {'+'.join(info.default_tokens)}",
        _settings(info),
        "" if number is None else f"{number:,}",
        info.source,
    ]


def _settings(info: HeadInfo) -> str:
    settings = [f"{name}: {values}" for name, values in info.swept.items()]
    settings += [f"{name}={value or 'one a token'}" for name, value in info.options.items()]
    settings += ["dropout of the protocol"] if info.has_dropout else []
    return "; ".join(settings)
