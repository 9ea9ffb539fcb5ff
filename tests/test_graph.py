"""dvc.yaml covers all code a stage imports and all parameters it reads; the layers hold."""

import ast
from functools import cache
from pathlib import Path

import pytest

from headstart.core.graph import Stage, load_graph
from headstart.core.params import Params, load_params
from tests.conftest import REPOSITORY
from tests.param_reads import Reads

PARAMS = load_params(REPOSITORY / "params.yaml")
GRAPH = load_graph(REPOSITORY, PARAMS)
ORDER = ["fetch_data", "link_data", "precompute", "find_lr", "train_head", "fine_tune", "evaluate"]


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of every module a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def module_file(name: str) -> Path | None:
    path = REPOSITORY / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def closure(name: str) -> set[Path]:
    """Every first-party file that importing a module runs, packages' __init__ included."""
    seen: set[Path] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        for prefix in (".".join(parts[:i]) for i in range(1, len(parts) + 1)):
            path = module_file(prefix)
            if path and path not in seen and parts[0] in ("headstart", "tasks", "flows"):
                seen.add(path)
                waiting += imports(path)
    return seen


def covered(path: Path, deps: tuple[str, ...]) -> bool:
    relative = path.relative_to(REPOSITORY)
    return any(relative == Path(dep) or Path(dep) in relative.parents for dep in deps)


def test_stages_and_their_order_and_commands():
    assert list(GRAPH) == ORDER
    assert all(stage.command == f"python -m tasks.{name}" for name, stage in GRAPH.items())
    assert {path.stem for path in (REPOSITORY / "tasks").glob("*.py")} == {*ORDER, "register", "mend", "__init__"}


def test_a_stage_reads_only_what_earlier_stages_or_the_checkout_give():
    made = {"data/digits"}
    for stage in GRAPH.values():
        for dep in stage.deps:
            produced = any(Path(dep) == Path(out) or Path(out) in Path(dep).parents for out in made)
            assert produced or (REPOSITORY / dep).exists(), (stage.name, dep)
        made |= set(stage.outs)


@pytest.mark.parametrize("name", ORDER)
def test_code_dependencies_cover_every_module_a_stage_imports(name):
    missing = sorted(str(path) for path in closure(f"tasks.{name}") if not covered(path, GRAPH[name].deps))
    assert not missing


@pytest.mark.parametrize("name", ORDER)
def test_no_code_dependency_is_idle(name):
    files = closure(f"tasks.{name}")
    code = [dep for dep in GRAPH[name].deps if dep.startswith(("headstart", "tasks"))]
    assert all(any(covered(path, (dep,)) for path in files) for dep in code)


@cache
def source(name: str) -> ast.Module | None:
    path = module_file(name)
    return ast.parse(path.read_text()) if path else None


# Notes which namespaces of the cache a project uses, for `prune`; no out depends on it.
NO_OUT = frozenset({"headstart.activations.cache.record_use"})


def reads(name: str) -> set[str]:
    """`section.key` (or `seed`) of every parameter a stage's function reads."""
    return Reads(source, NO_OUT).stage(f"tasks.{name}", name)


def uncovered(found: set[str], stage: Stage) -> set[str]:
    """Parameters that are read and not declared in dvc.yaml. What is in the source folder is a dependency of its own."""
    by_content = {"data.source"} if {PARAMS.data.source, "data/manifest.parquet"} & set(stage.deps) else set()
    left = {key for key in found - by_content if not key.startswith("runtime.")}
    return {key for key in left if not any(key == d or key.startswith(f"{d}.") for d in stage.params)}


@pytest.mark.parametrize("name", ORDER)
def test_params_cover_every_parameter_a_stage_reads(name):
    assert not uncovered(reads(name), GRAPH[name])


def test_reads_sees_what_stages_read():
    assert {"fine_tune.lr_ratio", "find_lr.unfrozen.lr_min", "precompute.augment.flip", "seed"} <= reads("fine_tune")
    assert "data.test_fraction" in reads("link_data")
    assert {"find_lr.seeds", "train_head.batch_size"} <= reads("find_lr")
    assert "promote.alpha" not in reads("evaluate")
    assert {"backbone.name", "runtime.cache_dir"} <= reads("precompute")


PLANTED = {
    "of_an_attribute": "def stage(job):\n    return Work(job).go()\nclass Work:\n    def go(self):\n        return {root}.x",
    "in_an_expression": "def stage(job):\n    print(f'{{1 + {root}.x}}')",
    "alias": "def stage(job):\n    p = {root}\n    one = p\n    use(one.x)",
    "alias_of_params": "def stage(job):\n    params = {up}\n    return params.{section}.x",
    "tuple": "def stage(job):\n    (a, b), c = ({root}, 1), 2\n    return b.x + a.x",
    "walrus": "def stage(job):\n    if (one := {root}):\n        return one.x",
    "loop": "def stage(job):\n    for one in ({root}, None):\n        one.x",
    "helper": "def stage(job):\n    helper(1, {root})\ndef helper(a, settings):\n    return settings.x",
    "helper_by_name": "def stage(job):\n    helper(given={root}, a=1)\ndef helper(a, *, given):\n    return given.x",
    "helper_that_returns": "def stage(job):\n    return pick(job).x\ndef pick(job):\n    return {root}",
    "property": (
        "def stage(job):\n    return Work(job).mine.x\nclass Work:\n    @property\n    def mine(self):\n        return {root}"
    ),
    "annotated": "def stage(job):\n    go(helper)\ndef helper(settings: FineTune):\n    return settings.x",
    "library": "from library import helper\ndef stage(job):\n    helper({root})",
    "library_by_module": "import library as lib\ndef stage(job):\n    lib.helper({root})",
    "closure": "def stage(job):\n    one = {root}\n    def inner():\n        return one.x\n    return inner",
    "lambda": "def stage(job):\n    one = {root}\n    return lambda: one.x",
    "bound_below": "def stage(job):\n    for i in range(2):\n        if i:\n            one.x\n        one = {root}",
    "constructor": "def stage(job):\n    return Work({root})",
    "stars": "def stage(job):\n    return dict(**{root})",
    "container": "def stage(job):\n    return [{root}][0].x",
    "stored": "def stage(job):\n    self.mine = {root}",
    "dumped": "def stage(job):\n    return {root}.model_dump()",
    "method": "def stage(job):\n    return {root}.phases()",
}


@pytest.mark.parametrize("root", ["job.params.fine_tune", "self.job.params.fine_tune", "a.b.c.params.fine_tune"])
@pytest.mark.parametrize("way", PLANTED)
def test_a_planted_hole_is_found(way, root):
    up, _, section = root.rpartition(".")
    text = PLANTED[way].format(root=root, up=up, section=section).replace(".x", ".lr_ratio")
    library = "def helper(settings):\n    return settings.lr_ratio"
    modules = {"planted": ast.parse(text), "library": ast.parse(library)}
    found = Reads(modules.get).stage("planted", "stage")
    assert "fine_tune.lr_ratio" in found
    assert "fine_tune.lr_ratio" in uncovered(found, GRAPH["train_head"])


def test_what_a_stage_does_not_read_is_not_found():
    text = "def stage(job):\n    a, b = job.params, job.params.fine_tune\n    use(a.seed, b.epochs)\n"
    text += "def other(params):\n    params.promote.alpha"
    assert Reads({"planted": ast.parse(text)}.get).stage("planted", "stage") == {"seed", "fine_tune.epochs"}


def test_runtime_is_no_dvc_parameter_and_every_other_section_is():
    sections = {key.split(".")[0] for stage in GRAPH.values() for key in stage.params}
    assert sections == set(Params.model_fields) - {"promote", "runtime"}


def test_layers():
    """flows -> tasks -> headstart, never back; prefect, mlflow and dvc each in one place; no pickle."""
    forbidden = {
        "headstart": {"prefect", "flows", "tasks", "mlflow", "dvc", "pickle"},
        "tasks": {"prefect", "flows", "mlflow", "dvc", "pickle"},
        "flows": {"mlflow", "dvc", "pickle"},
    }
    allowed = {"headstart/tracking": {"mlflow"}, "headstart/versioning.py": {"dvc"}}
    for top, banned in forbidden.items():
        for path in (REPOSITORY / top).rglob("*.py"):
            relative = path.relative_to(REPOSITORY)
            mine = set().union(*(allowed.get(part.as_posix(), ()) for part in (relative, relative.parent)))
            roots = {imported.split(".")[0] for imported in imports(path)}
            assert not roots & (banned - mine), relative


def test_core_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, headstart.core.stages, headstart.core.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
