"""``featcache protocols``: how heads are trained, as files to copy."""

from dataclasses import asdict

import click

from featcache.cli.options import output_options
from featcache.probing.protocols.files import preset_names
from featcache.probing.protocols.protocol import Protocol, get_protocol, protocol_text
from featcache.terminal.console import print_document, print_json, print_table

COLUMNS = ("protocol", "input", "members", "epochs", "updates", "choice", "jitter", "besides")

EPILOG = """\b
Examples:
  featcache protocols
  featcache protocols quick > mine.toml
  featcache probe --head attentive --protocol mine.toml
"""


@click.command("protocols", epilog=EPILOG)
@click.argument("name", default="")
@output_options
def protocols_command(name: str, as_json: bool) -> None:
    """List the protocols, or print the file of NAME: copy it, change it, and give it to `featcache probe --protocol`.

    A file need not say everything: what it leaves out is taken from the protocol that its `base` names. With --json,
    every constant of a protocol is printed.
    """
    if name and not as_json:
        print_document(protocol_text(name).rstrip() + "\n")
        return
    protocols = [get_protocol(preset) for preset in ([name] if name else preset_names())]
    if as_json:
        print_json([asdict(protocol) for protocol in protocols])
    else:
        print_table(COLUMNS, [_row(protocol) for protocol in protocols], numeric=COLUMNS[3:5])


def _row(protocol: Protocol) -> list[str]:
    members = [len(protocol.members(has_dropout)) for has_dropout in (False, True)]
    choice = (
        f"{100 * protocol.validation_fraction:g} % held out"
        if protocol.folds == 1
        else f"{protocol.folds} folds"
    )
    return [
        protocol.name,
        protocol.input,
        str(members[0]) if members[0] == members[1] else f"{members[0]}, with dropout {members[1]}",
        str(protocol.min_epochs),
        f"{protocol.min_steps:,}",
        choice + (f", halving by {protocol.halving}" if protocol.halving > 1 else ""),
        f"{protocol.jitter_std:g}, half of the samples"
        if protocol.jitter_probability == 0.5
        else f"{protocol.jitter_std:g}, {100 * protocol.jitter_probability:g} % of the samples",
        ", ".join(words for words, holds in _departures(protocol).items() if holds),
    ]


def _departures(protocol: Protocol) -> dict[str, bool]:
    """Return the departures of the published runs from a protocol."""
    return {
        "jittered validation": protocol.jitter_validation,
        "projected final tokens": protocol.projected_final,
        "patches normalised over tokens": protocol.patch_norm_over_tokens,
    }
