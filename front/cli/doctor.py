"""``featcache doctor``: whether this machine has what featcache needs."""

import sys
from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.doctor.checks import FAILED, Finding, examine
from featcache.store.catalogue import roots
from featcache.terminal.console import echo, print_json


@click.command("doctor", epilog="\b\nExample:\n  featcache doctor\n")
@common_options
def doctor_command(root: tuple[Path, ...], as_json: bool) -> None:
    """Check devices, libraries, roots and the connection to the hub, and say what to do about what fails.

    Exit status 1 if something fails that is needed.
    """
    findings = []
    for finding in examine(roots(root)):
        findings.append(finding)
        if not as_json:
            echo(_line(finding))
    failed = [finding for finding in findings if finding.status == FAILED]
    if as_json:
        print_json({"ok": not failed, "findings": [finding.to_dict() for finding in findings]})
    else:
        echo(f"failed: {len(failed)}" if failed else "everything that is needed works")
    if failed:
        sys.exit(1)


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:<8}{finding.check:<10}{finding.detail}{remedy}"
