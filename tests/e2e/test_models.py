"""``featcache models``: what it prints, and that it loads no library for it."""

import json
import sys

from featcache.extraction.models.names import ALIASES
from support.timing import least_seconds


def test_the_list_as_a_table_and_as_json(cli):
    lines = cli("models", "siglip2-vit-so400m-14").out.splitlines()
    assert lines[0].split() == [
        "model",
        "layers",
        "width",
        "tokens",
        "per",
        "image",
        "own",
        "preprocessing",
        "explicit",
        "name",
    ]
    assert lines[1].split() == [
        *(
            "siglip2-vit-so400m-14",
            "27",
            "1152",
            "0+0+256",
            "64.5",
            "kB",
            "224",
            "px",
            "of",
            "248",
            "px",
            "bicubic",
        ),
        "timm:vit_so400m_patch14_siglip_224.v2_webli",
    ]
    assert len(lines) == 3
    everything = json.loads(cli("models", "--json").out)
    assert [model["alias"] for model in everything] == list(ALIASES)
    assert len(cli("models").out.splitlines()) == len(ALIASES) + 1


def test_a_name_that_is_in_none(cli):
    outcome = cli("models", "dinov5")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("featcache: unknown model 'dinov5'; did you mean ")
    assert outcome.err.count("\n") == 1


def test_it_answers_at_once():
    code = (
        "import sys\n"
        "from featcache.cli import cli\n"
        "cli.main(['models'], standalone_mode=False)\n"
        "heavy = {'torch', 'timm', 'open_clip', 'zarr', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert least_seconds([sys.executable, "-c", code])[0] < 0.5
