"""The order of the rooms, Ray's private names, and constructors, read from the code."""

import ast
import subprocess
import sys

import pytest
from small import ROOT

# From above to below: a module imports from its room and from those above it.
ROOMS = (
    ("crf", "exact_crf", "refine", "losses", "affinity", "metrics"),
    ("storage",),
    ("config", "checks", "fields", "presets", "versions"),
    ("data",),
    ("nets",),
    ("objectives",),
    ("reports",),
    ("segmenter", "export"),
    ("runtime",),
    ("training",),
    ("stages",),
    ("sweeps",),
    ("cli", "command", "jobs"),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
MODULES = sorted((ROOT / "ssdd").rglob("*.py"))
INTERNALS = ROOT / "ssdd" / "runtime" / "ray_internals.py"
# It compares the files of cluster/ with Ray's own schema, which has no public name.
VALIDATOR = ROOT / "tests" / "test_cluster_files.py"
LONGEST = 450


def parsed(path):
    return ast.parse(path.read_text())


def imports(tree):
    """Dotted names of what is imported anywhere in a module, inside functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def room(name):
    """The room of `ssdd.stages.static.run`, say; None for what is not of this package."""
    words = name.split(".")
    return words[1] if words[0] == "ssdd" and len(words) > 1 else None


def test_every_module_has_a_room():
    for path in MODULES:
        words = path.relative_to(ROOT / "ssdd").with_suffix("").parts
        assert words == ("__init__",) or words[0] in FLOOR, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "ssdd")))
def test_imports_run_one_way(path):
    words = path.relative_to(ROOT / "ssdd").with_suffix("").parts
    if path.name == "__init__.py":
        assert words == ("__init__",) or not path.read_text(), "empty"
        return
    for name in imports(parsed(path)):
        if room(name) is not None:
            assert FLOOR[room(name)] <= FLOOR[words[0]], f"{name} is of a room below"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "ssdd")))
def test_a_module_says_in_its_first_line_what_lives_there_and_is_not_long(path):
    if path.name == "__init__.py" and path.parent.name != "ssdd":
        return
    first = (ast.get_docstring(parsed(path)) or "").split("\n\n")[0]
    assert first.endswith((".", "?", "`")), path
    assert "\n" not in first
    assert len(path.read_text().splitlines()) <= LONGEST


def private_names(tree):
    """What begins with `ray` and has a part that begins with `_`, or is of `ray.train.v2`."""
    names = [*imports(tree), *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))]
    for name in names:
        words = name.split(".")
        private = any(w.startswith("_") and not w.endswith("__") for w in words)
        if words[0] == "ray" and (private or name.startswith("ray.train.v2")):
            yield name


def private_options(tree):
    """Names of arguments that begin with `_`, in calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (k.arg for k in node.keywords if k.arg and k.arg.startswith("_"))


def test_private_names_of_ray_are_in_one_module():
    for folder in ("ssdd", "ray_jobs", "bench", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path not in (INTERNALS, VALIDATOR):
                assert list(private_names(parsed(path))) == [], path
                assert list(private_options(parsed(path))) == [], path


def test_the_walk_finds_private_names():
    text = """
        import ray._private.services
        from ray.train.v2.torch import torch_trainer
        def f():
            from ray.data._internal import x
            return ray._private.state.actors(1), ray.get(2), ray.train.v2.api
    """
    names = set(private_names(ast.parse("if True:" + text)))
    assert len(names) >= 5
    assert "ray.get" not in names
    assert list(private_options(ast.parse("NodeAffinity(node, _spill=True)"))) == ["_spill"]


def test_constructors_of_more_than_four_values_take_them_by_keyword():
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ClassDef):
                continue
            decorators = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            assert not decorators or len(fields) <= 4 or "kw_only=True" in decorators[0], node.name
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    assert len(method.args.args) <= 5, node.name


LIGHT = """
import sys
import ssdd.training.entry, ssdd.training.local_backend, ssdd.training.ingest
assert "torch" not in sys.modules
import ssdd.data.transforms
assert "torchvision" not in sys.modules
"""


@pytest.mark.programs
def test_ray_s_controller_imports_no_torch_and_readers_of_samples_no_torchvision():
    """Each takes seconds, at the start of every training."""
    subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, check=True)


BLOCK = """
import importlib, pkgutil, runpy, sys
sys.modules.update(dict.fromkeys(BLOCKED))  # an import of them fails
sys.path.insert(0, "bench")
"""
IMPORT_THE_METHOD = """
names = ["ssdd.refine", "ssdd.crf", "ssdd.losses", "ssdd.metrics", "step"]
for package in ("ssdd.objectives", "ssdd.nets"):
    found = importlib.import_module(package)
    names += [f"{package}.{module.name}" for module in pkgutil.iter_modules(found.__path__)]
import ssdd, ssdd.crf
assert "torch" not in sys.modules
for name in names:
    importlib.import_module(name)
try:
    ssdd.load("nowhere")
except ValueError as error:
    assert "nothing was trained there" in str(error)
print(len(names))
"""
RUN_BENCH_STEP = """
sys.argv = ["step.py", "--preset", "mini", "--batch", "2", "--steps", "1"]
runpy.run_path("bench/step.py", run_name="__main__")
"""


def without(modules, code):
    """What some code prints in a process where modules cannot be imported."""
    text = BLOCK.replace("BLOCKED", repr(modules)) + code
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.programs
def test_the_method_needs_neither_ray_nor_mlflow():
    out = without(["ray", "mlflow", "tyro", "yaml"], IMPORT_THE_METHOD)
    assert int(out.split()[-1]) > 15


@pytest.mark.programs
def test_bench_step_runs_without_ray_and_pydensecrf():
    out = without(["ray", "mlflow", "tyro", "yaml", "pydensecrf", "matplotlib"], RUN_BENCH_STEP)
    assert "CRF exact" in out
    assert "peak memory" in out
