"""Import names of version 0.1.0 work, with a warning that points at the import; each test has a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = (Path(__file__).parent / "compat" / "v0.1.0-modules.txt").read_text().split()
CALL = (
    "from featcache.errors import CacheNotFoundError\n"
    "try: featcache.probe('no/cache')\n"
    "except CacheNotFoundError: pass\n"
    "else: raise AssertionError\n"
)


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_every_module_of_before_is_there():
    """Each is the very module that bears the present name, so its classes are the same under both."""
    code = f"""
import sys, warnings
from importlib import import_module
warnings.simplefilter("ignore")
from featcache.moved import FUNCTIONS, new_name
for name in {MODULES!r}:
    module = import_module(name)
    if name in FUNCTIONS:
        continue
    present = new_name(name) or name
    assert module is import_module(present) is sys.modules[present], name
    assert module.__name__ == module.__spec__.name == present, (name, module.__spec__)
    assert new_name(present) is None, name
files = [module.__file__ for module in {{id(m): m for m in sys.modules.values()}}.values()
         if getattr(module, "__name__", "").startswith("featcache") and getattr(module, "__file__", None)]
assert len(files) == len(set(files)), "a module was loaded twice"
import featcache
assert type(featcache.probe) is type(featcache.extract) is type(lambda: None)
"""
    python(code)


CASES = [
    "import featcache.probe.estimators\nassert featcache.probe.estimators.HeadProbe is featcache.HeadProbe",
    "from featcache.probe.estimators import AttentiveProbe\nassert AttentiveProbe is featcache.AttentiveProbe",
    "from featcache.probe import estimators\nassert estimators.LinearProbe is featcache.LinearProbe",
    "import featcache.probe.dataset as d\nassert d.CachedSamples is featcache.CachedSamples",
    "from featcache.extract.backbones.custom import Parts, custom_backbone\nassert Parts is featcache.Parts",
    "from featcache.extract.sources.sequences import python_dataset\nassert python_dataset is featcache.python_dataset",
    "from featcache.extract import sources\nassert sources.resolve_source",
    "from featcache.extract.models import ALIASES\nassert ALIASES",
    "from featcache.extract import planning, provenance\nassert planning.__file__ and provenance.__file__",
    "from featcache.probe.results import read_confusion\nassert read_confusion is featcache.read_confusion",
    "import featcache.probe.heads.parts, featcache.probing.heads.parts\n"
    "assert featcache.probe.heads.parts is featcache.probing.heads.parts",
    "from featcache.store.errors import CacheError\nassert CacheError is featcache.errors.CacheError",
    "import featcache.probe\nimport inspect; assert 'tap' in inspect.signature(featcache.probe).parameters",
    "import featcache.probe as probe\nassert probe is featcache.probe",
    "from importlib import import_module\nassert callable(import_module('featcache.probe'))",
    "from featcache.terminal import echo_error\nimport featcache.terminal.console",
    "from featcache.doctor import examine",
    "from featcache.api import probe, load_head\nassert probe is featcache.probe",
    "from importlib import reload\nimport featcache.probe.estimators as e\nassert reload(e) is e\n"
    "assert e.__name__ == 'featcache.probing.estimators'\nreload(featcache)\nassert e.HeadProbe().head",
    "from unittest.mock import patch\nwith patch('featcache.probe.run.probe') as p: assert featcache.probing.run.probe is p",
]
"""Statements of code that was written for version 0.1.0."""

RUNNER = r"""
import os, sys, traceback, warnings
import numpy, sklearn.base, scipy.sparse, torch  # once; each case is a fork, for which featcache is new
torch.set_num_threads(1)
warnings.simplefilter("ignore")
cases, call = eval(sys.stdin.read())
for case in cases:
    for before in ("", call):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            assert not any(name.startswith("featcache") for name in sys.modules)
            try:
                code = f"import featcache\n{before}{case}\nassert type(featcache.probe) is type(lambda: 0)\n{call}"
                exec(compile(code, "case", "exec"), {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                print(f"failed{' after a call' if before else ''}: {case}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork")
def test_imports(tmp_path):
    """Each statement works in a fresh process and after `featcache.probe` was called, and leaves the functions as they are."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=repr((CASES, CALL)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_one_warning_for_each_name_at_the_line_that_imports(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import featcache\n"
        "\n"
        "from featcache.probe.estimators import HeadProbe\n"
        "from featcache.probe.estimators import LinearProbe\n"
        "import featcache.extract.taps\n"
        "from featcache.terminal import echo\n"
        "from featcache.terminal import echo\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", str(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    warned = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    where = f"{script}:3: DeprecationWarning: "
    assert warned[:2] == [
        f"{where}featcache.probe is a function now; `import featcache` is enough to call it; "
        "the name featcache.probe goes with version 0.3.0",
        f"{where}import HeadProbe, HeadRegressor, LinearProbe and AttentiveProbe from featcache; "
        "the name featcache.probe.estimators goes with version 0.3.0",
    ]
    assert [line.partition(":")[2].split(" ")[0] for line in warned[2:]] == ["5:", "5:", "6:"]


def test_warnings_as_errors():
    code = (
        "import featcache\n"
        "for name in ('featcache.probe', 'featcache.probe.estimators', 'featcache.console'):\n"
        "    for _ in range(2):\n"
        "        try: __import__(name)\n"
        "        except DeprecationWarning as error: assert 'featcache' in str(error)\n"
        "        else: raise AssertionError(name)\n"
        "assert callable(featcache.probe)\n"
        "import featcache.probing.inputs.dataset, featcache.terminal.console\n"
    )
    python(code, "-W", "error::DeprecationWarning")


def test_what_was_never_there_is_missing_by_the_name_that_was_asked_for():
    code = (
        "import featcache\n"
        "for name in ('featcache.probe.nothing', 'featcache.extract.nothing.more', 'featcache.nothing'):\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert name.startswith(error.name) and 'ing.' not in str(error), error\n"
        "    else: raise AssertionError(name)\n"
        "try: from featcache.terminal import nothing\n"
        "except ImportError as error: assert 'nothing' in str(error)\n"
    )
    python(code, "-W", "ignore")


def test_pickles_of_before():
    """An estimator that version 0.1.0 pickled names its class by the old module."""
    code = (
        "import pickle, featcache\n"
        "data = pickle.dumps(featcache.LinearProbe(), protocol=0)\n"
        "assert b'featcache.probing.estimators' in data\n"
        "old = data.replace(b'featcache.probing.estimators', b'featcache.probe.estimators')\n"
        "assert type(pickle.loads(old)) is featcache.LinearProbe\n"
    )
    python(code, "-W", "ignore")


def test_a_module_is_run_by_its_name_of_before():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "featcache.extract.tabulate", "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "No module" not in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_help_and_inspection_after_an_import_of_before():
    code = (
        "import doctest, inspect, pydoc, featcache\n"
        "import featcache.probe.estimators\n"
        "for name in ('featcache.probe', 'featcache.extract'):\n"
        "    text = pydoc.render_doc(name, renderer=pydoc.plaintext)\n"
        "    assert 'device: ' in text and 'Raises:' in text, text\n"
        "text = pydoc.render_doc(featcache.probe, renderer=pydoc.plaintext)\n"
        "assert 'head' in text.splitlines()[2], text\n"
        "assert 'device' in inspect.signature(featcache.probe).parameters\n"
        "assert inspect.getmodule(featcache.probe).__name__.startswith('featcache.api')\n"
        "assert 'def probe(' in inspect.getsource(featcache.probe)\n"
        "assert doctest.DocTestFinder().find(featcache.probe)\n"
    )
    python(code, "-W", "ignore")
