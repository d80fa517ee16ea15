"""Names and commands that teammates see hold no paths, no logins and no queries."""

import shlex

import pytest

from featcache.extraction.provenance.public_names import public_command, public_name

SECRET = "acme-merger"
FORMS = (
    "--weights /home/{}/w.pt",
    "--weights=/home/{}/w.pt",
    "--weights={}/w.pt",
    "--weights {}/w.pt",
    "--weights ../{}/w.pt",
    "--root=~{}/caches",
    "--root=/srv/{}",
    "--root {} --root ../{} --limit 2",
    "--data=./{}/x/",
    "--data {}/..",
    "--dataset imagefolder:/srv/{}/photos",
    "--dataset=imagefolder:{}/photos",
    "--dataset=csv:x.csv?root=/home/{}",
    "--dataset csv:{}/x.csv?root={}/x",
    "--dataset=wds:https://u:{}@h/x.tar",
    "--dataset=wds:https://h/x.tar?token={}",
    "--dataset 'wds:https://h/{}/x-{{0..9}}.tar?test=https://h/{}/t.tar'",
    "--dataset hf:/srv/{}/repo",
    "--dataset=hf:o/n?config=/srv/{}/x",
    "--model=/srv/{}/m.py",
    "--dataset https://u:{}@h",
)


@pytest.mark.parametrize("form", FORMS)
def test_paths_are_reduced_to_their_last_part(form):
    shown = public_command(
        "featcache extract " + form.replace("{}", SECRET).replace("{{", "{").replace("}}", "}")
    )
    assert SECRET not in shown
    assert shlex.split(shown)[:2] == ["featcache", "extract"]


def test_what_reproduces_a_run_stays():
    command = (
        "featcache extract --model open_clip:ViT-L-14/openai --dataset hf:owner/name?config=a "
        "--weights w.pt --revision refs/pr/1 --precision fp32 --limit 20 --force"
    )
    assert shlex.split(public_command(command)) == shlex.split(command)
    assert public_command("") == ""
    assert (
        public_command("featcache extract --root a --model=m --root=b/c --force")
        == "featcache extract --model=m --force"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("imagefolder:/a/photos", "imagefolder:photos"),
        ("imagefolder:/a/photos/", "imagefolder:photos"),
        ("wds:/a/x-{000..010}.tar", "wds:x-{000..010}.tar"),
        ("wds:/a/x-0?.tar", "wds:x-0?.tar"),
        ("csv:/a/x.csv?root=/b", "csv:x.csv"),
        ("digits", "digits"),
        ("vit-l-14", "vit-l-14"),
        ("timm:vit_base.tag", "timm:vit_base.tag"),
        ("/a/caf\udce9", "caf\\udce9"),
    ],
)
def test_names(name, shown):
    assert public_name(name) == shown
