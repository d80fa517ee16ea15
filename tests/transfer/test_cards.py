"""What people read: the card of a pushed cache, and the dataset card of a Hub repository."""

import json
from pathlib import Path

import pytest

from featcache.store.address import parse_address
from featcache.store.checking.verify import verify
from featcache.store.files import sha256_hex, write_sealed
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from support.caches import cache_folder, make_content, make_plan, write_cache

LICENSED = "# colours\n\n| | |\n|---|---|\n| licence | {} |\n| cite | Someone (2020) |\n"


def license_as(directory: Path, licence: str) -> None:
    """Give a cache a card that tells the licence of its data, as an extraction writes it."""
    card = LICENSED.format(licence).encode()
    (directory / "README.md").write_bytes(card)
    write_sealed(directory / "provenance.json", {"completed_at": 1.0, "card_sha256": sha256_hex(card)})


def test_a_card_says_what_it_is_and_how_to_get_it(made, folder, tmp_path):
    license_as(made.directory, "CC BY 4.0")
    address = f"{tmp_path}/share/{made.name}"
    push(made.directory, parse_address(folder))
    card = (tmp_path / "share" / made.name / "README.md").read_text()
    assert card.startswith("# colours\n")
    for part in (
        "| licence | CC BY 4.0 |",
        "timm:tiny",
        "| train | 300 | final: layer final, cls, ap; norm2: 3 layers, 0 to 2, cls, ap |",
        f"featcache pull {address} --layers last",
        f"featcache probe --head attentive --cache {address}",
        "digest of the manifest",
    ):
        assert part in card
    # Pushed on by whoever pulled it, it tells the new place and not the old one.
    copy = pull(parse_address(address), [tmp_path / "other"]).path
    (tmp_path / "second").mkdir()
    push(copy, parse_address(str(tmp_path / "second")))
    again = (tmp_path / "second" / made.name / "README.md").read_text()
    assert address not in again
    assert again.replace(f"{tmp_path}/second", f"{tmp_path}/share") == card
    assert verify(pull(parse_address(f"{tmp_path}/second/{made.name}"), [tmp_path / "third"]).path).intact


def header(card: bytes) -> dict[str, object]:
    front = card.decode().split("---\n")[1]
    return {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in front.splitlines()}


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ('ours: "do\nwhat" you like', {"license": "other", "license_name": 'ours: "do'}),
        (None, {}),
    ],
)
def test_the_hub_gets_a_dataset_card(cli, made, hub, hub_address, tmp_path, licence, fields):
    if licence:
        license_as(made.directory, licence.partition("\n")[0])
    push(made.directory, parse_address(hub_address))
    card = hub.files("team/features")["README.md"]
    assert {name: value for name, value in header(card).items() if "license" in name} == fields
    assert made.plan.spec.key in card.decode()
    assert (
        f"hf://datasets/team/features/{made.name}".encode()
        in hub.files("team/features")[f"{made.name}/README.md"]
    )

    plan = make_plan({"train": 20}, number=2)
    other = cache_folder(tmp_path / "root", plan)
    write_cache(other, plan, make_content(plan))
    push(other, parse_address(hub_address))
    both = hub.files("team/features")["README.md"].decode()
    assert made.plan.spec.key in both
    assert plan.spec.key in both
    assert "license" not in both.split("---\n")[1]  # of one of them it is not known
    assert cli("rm", f"{hub_address}/made/{other.name}", "--yes").status == 0
    assert plan.spec.key not in hub.files("team/features")["README.md"].decode()


def test_a_card_that_somebody_wrote_stays(made, hub, hub_address):
    hub.commits["team/features"] = []
    hub.commit("team/features", {"README.md": b"# Mine\n"})
    push(made.directory, parse_address(hub_address))
    assert hub.files("team/features")["README.md"] == b"# Mine\n"


def test_the_hub_sees_no_half_pushed_cache(made, hub, hub_address):
    """Data come in commits of their own; what makes them count comes in the last one, all at once."""
    push(made.directory, parse_address(hub_address))
    complete = [f"{made.name}/manifest.json" in files for _, files in hub.commits["team/features"]]
    assert complete[-1]
    assert not any(complete[:-1])
    files = hub.files("team/features")
    assert any(path.startswith("_catalogue/") for path in files)
    uploads = hub.uploads
    push(made.directory, parse_address(hub_address))
    assert hub.uploads == uploads
