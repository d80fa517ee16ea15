"""Every parameter of a request is stated once, and the command line and Python take it from there."""

import inspect
from collections import Counter
from pathlib import Path

import attrs
import click
import pytest

import featcache
from featcache.api.extraction import ExtractCall
from featcache.api.probing import ProbeCall
from featcache.api.signatures import takes_parameters_of
from featcache.cli.datasets import show_command
from featcache.cli.extract import extract_command
from featcache.cli.probe import probe_command
from featcache.cli.pull import pull_command
from featcache.cli.request_options import options_of
from featcache.cli.verify import verify_command
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.probing.protocols import files
from featcache.probing.requests.request import ProbeRequest
from featcache.recompute.request import RecomputeRequest
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.layers import LayerSelection
from featcache.store.parameters import FOLDER, SIZE, as_path, parameter, parameters
from featcache.store.transfer.selection import CacheSelection

REQUESTS = [
    (ProbeRequest, probe_command, featcache.probe),
    (ExtractRequest, extract_command, featcache.extract),
    (DatasetOptions, show_command, featcache.extract),
    (CacheSelection, pull_command, None),
    (RecomputeRequest, verify_command, None),
]
CALLS = [ProbeCall, ExtractCall]


@pytest.mark.parametrize(("request_class", "command", "function"), REQUESTS)
def test_every_parameter_has_a_help_text_and_an_option(request_class, command, function):
    options = {option.name: option for option in command.params}
    for field, stated in parameters(request_class):
        # A text may begin with a value, which keeps its letters.
        assert stated.help[0].isupper() or stated.help.split()[0] in ("adamw", "ignore"), field.name
        assert stated.help.endswith("."), field.name
        option = options[field.name]
        assert stated.option == "/".join([*option.opts, *option.secondary_opts]), field.name
        assert stated.help in option.help, field.name


@pytest.mark.parametrize(("request_class", "function"), [(row[0], row[2]) for row in REQUESTS if row[2]])
def test_every_parameter_is_one_of_the_python_function(request_class, function):
    documented = " ".join(inspect.getdoc(function).split())
    for field, stated in parameters(request_class):
        name = "head" if field.name == "heads" else field.name
        assert name in inspect.signature(function).parameters
        assert f"{name}: {stated.help}" in documented


@pytest.mark.parametrize("call", CALLS)
def test_a_parameter_of_python_alone_says_why(call):
    for field, stated in parameters(call):
        assert bool(stated.option) != bool(stated.python_only), field.name


def test_no_help_text_is_written_twice():
    stated = {
        id(one): one for request in (*CALLS, *(row[0] for row in REQUESTS)) for _, one in parameters(request)
    }
    twice = [text for text, count in Counter(one.help for one in stated.values()).items() if count > 1]
    assert not twice


@attrs.frozen(kw_only=True)
class Walk:
    """A walk."""

    place: Path = attrs.field(
        kw_only=False, converter=as_path, metadata=parameter("Start.", "--place", form=FOLDER)
    )
    steps: int | None = attrs.field(
        default=None, metadata=parameter("Number of steps.", "--steps", default="any")
    )
    fast: bool = attrs.field(default=False, metadata=parameter("Run.", "--fast"))
    limit: int = attrs.field(default=7, metadata=parameter("Bytes.", "--limit", form=SIZE))
    home: bool = attrs.field(default=True, metadata=parameter("Return.", "--home/--away"))
    dog: str = attrs.field(default="rex", metadata=parameter("Dog.", python_only="dogs cannot be typed"))


@click.command()
@options_of(Walk)
@click.option("--json", is_flag=True)
def walk_command(request: Walk, json: bool) -> Walk:
    return request


@takes_parameters_of(Walk)
def walk(call: Walk) -> Walk:
    """Walk.

    Raises:
        ValueError: no.
    """
    return call


def test_options_are_made_of_the_fields():
    told = walk_command.main(["--place", "here", "--steps", "0", "--limit", "2kB"], standalone_mode=False)
    assert told == Walk("here", steps=0, limit=2000)  # 0 is a value, not an option that was left out
    assert walk_command.main(["--place", "x", "--fast"], standalone_mode=False) == Walk("x", fast=True)
    assert walk_command.main(["--place", "x", "--away"], standalone_mode=False) == Walk("x", home=False)
    with pytest.raises(click.MissingParameter, match="place"):
        walk_command.main([], standalone_mode=False)
    context = click.Context(walk_command)
    shown = " ".join(walk_command.get_help(context).split())
    assert "--steps INTEGER Number of steps. [default: any]" in shown
    assert "Bytes. Written such as 2GB. [default: 7]" in shown
    assert "dog" not in shown


@click.command()
@options_of(Walk, only_with=("steps",))
def stroll_command(request: Walk | None) -> Walk | None:
    return request


def test_a_request_that_one_option_asks_for():
    assert stroll_command.main([], standalone_mode=False) is None
    told = stroll_command.main(["--steps", "0", "--place", "x"], standalone_mode=False)
    assert told == Walk("x", steps=0)
    with pytest.raises(RequestError, match=r"^--fast is for --steps; give --steps as well$"):
        stroll_command.main(["--fast"], standalone_mode=False)
    assert "With --steps: Run." in stroll_command.get_help(click.Context(stroll_command))


def test_a_function_has_the_signature_and_the_text_of_its_request():
    assert str(inspect.signature(walk)) == (
        "(place: str | pathlib.Path, *, steps: int | None = None, fast: bool = False, limit: int = 7, home: bool = True, dog: str = 'rex')"
        f" -> {Walk.__module__}.Walk"
    )
    assert inspect.getdoc(walk).splitlines()[2:6] == [
        "Args:",
        "    place: Start.",
        "    steps: Number of steps. Default: any.",
        "    fast: Run.",
    ]
    assert inspect.getdoc(walk).endswith("Raises:\n    ValueError: no.")
    assert walk("here", dog="max").place == Path("here")
    with pytest.raises(TypeError, match=r"^walk\(\) got an unexpected keyword argument 'cat'$"):
        walk("here", cat="tom")
    with pytest.raises(TypeError, match=r"^walk\(\) too many positional arguments$"):
        walk("here", 3)


def test_a_field_without_a_statement_is_refused():
    @attrs.frozen
    class Silent:
        number: int = 0

    with pytest.raises(TypeError, match=r"Silent\.number has no help text"):
        list(parameters(Silent))


def test_a_probe_request_holds_parsed_values_and_may_be_copied(tmp_path):
    groups = tmp_path / "groups.csv"
    groups.write_text("sample_id,group\na,1\n")
    request = ProbeRequest(
        heads="linear, mlp", layers="0,final", tokens="patches+ap", protocol="quick", folds=3, groups=str(groups),
        options=["hidden=8"], seeds="1,0,1", shots="5", out="results",
    )  # fmt: skip
    assert [head.name for head in request.heads] == ["linear", "mlp"]
    assert request.layers == LayerSelection(("0", "final"))
    assert request.tokens == ("ap", "patches")
    assert (request.protocol.name, request.settings().folds) == ("quick", 3)
    assert (request.groups, request.options) == ({"a": "1"}, {"hidden": 8})
    assert (request.seeds, request.shots, request.out) == ((1, 0), (5,), Path("results"))
    assert attrs.evolve(request, force=True) == attrs.evolve(request, force=True)
    assert attrs.evolve(request, seeds=(4,)).layers == request.layers


def test_an_extract_request_holds_parsed_values_and_may_be_copied(tmp_path):
    (tmp_path / "weights.pt").touch()
    request = ExtractRequest(
        "vit-l-14", "digits", weights=str(tmp_path / "weights.pt"), taps="norm2, mlp", layers="0,3", patches="last",
        tokens="grid2,ap", splits="test", test_splits=["val"], data="copy", pixel_range="12",
    )  # fmt: skip
    assert request.weights == tmp_path / "weights.pt"
    assert (request.taps, request.splits, request.test_splits) == (("norm2", "mlp"), ("test",), ("val",))
    assert (request.layers.names, request.patches.of(12)) == (("0", "3"), ("final",))
    assert request.groups == ("pooled", "patches", "grid2")
    assert (request.data, request.pixels.pixel_range.high) == (Path("copy"), 4095)
    copy = attrs.evolve(request, workers=0)
    assert attrs.evolve(copy, workers=None) == request
    assert copy.groups == request.groups


def test_a_protocol_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text('base = "quick"\nmin_epochs = 2\n')
    read = Counter()
    original = Path.read_text

    def counted(self, *args, **kwargs):
        read[self] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(files.Path, "read_text", counted)
    request = ProbeRequest(heads="linear", protocol=str(path), halving=2)
    assert request.settings().halving == attrs.evolve(request, folds=2).settings().halving == 2
    assert read[path] == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"solver": "sgd"}, UnknownNameError, "unknown solver 'sgd'; valid: adamw, exact"),
        ({"heads": "linaer"}, UnknownNameError, "unknown head 'linaer'; did you mean linear"),
        ({"tokens": "cls+cls"}, RequestError, "token kind cls is named more than once in 'cls\\+cls'"),
        ({"layers": ""}, RequestError, "no layer is named in ''"),
        ({"table": "pape"}, UnknownNameError, "unknown table 'pape'; did you mean paper"),
    ],
)
def test_a_wrong_value_is_refused_when_the_request_is_made(given, error, message):
    with pytest.raises(error, match=message):
        ProbeRequest(**{"heads": "linear", **given})


def test_the_default_head_gives_way_to_a_table():
    assert ProbeCall("cache").heads[0].name == "attentive"
    assert len(ProbeCall("cache", table="paper").rows) == 10
    with pytest.raises(RequestError, match="the table paper says which heads it has"):
        ProbeCall("cache", "linear", table="paper")
