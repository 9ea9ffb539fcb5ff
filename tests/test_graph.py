"""dvc.yaml covers all code a stage imports and all parameters it reads; the layers hold."""

import ast
from functools import cache
from pathlib import Path

import pytest

from headstart.core.params import Params, load_params
from headstart.core.stages import load_graph
from tests.conftest import REPOSITORY

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


def reads(path: Path) -> set[str]:
    """`section.key` (or `seed`) of every parameter a task reads, through any local name for a section."""
    tree = ast.parse(path.read_text())
    roots = {"params": (), "job.params": ()}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                text = ast.unparse(value)
                if isinstance(target, ast.Name) and text.startswith(("job.params.", "params.")):
                    roots[target.id] = tuple(text.split("params.")[1].split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            for root, prefix in roots.items():
                if text.startswith(f"{root}.") and "(" not in text:
                    keys = [*prefix, *text.removeprefix(f"{root}.").split(".")]
                    found.add(".".join(keys[:2]))
    return {key for key in found if key.split(".")[0] in Params.model_fields}


@pytest.mark.parametrize("name", ORDER)
def test_params_cover_every_parameter_a_stage_reads(name):
    declared = GRAPH[name].params
    text = (REPOSITORY / "tasks" / f"{name}.py").read_text()
    whole = {section for section in Params.model_fields if f"{section}.model_dump()" in text}
    for key in reads(REPOSITORY / "tasks" / f"{name}.py") | whole:
        section, _, leaf = key.partition(".")
        if section == "runtime" or (name == "link_data" and key == "data.source") or leaf in ("model_dump", "params"):
            continue
        if key == "data.source":
            assert "data/manifest.parquet" in GRAPH[name].deps  # it holds the hash of every image
            continue
        if section == key and section in Params.model_fields and section not in ("seed",) and key not in whole:
            continue
        assert any(key == d or key.startswith(f"{d}.") or d.startswith(f"{key}.") for d in declared), (name, key)


def test_reads_sees_through_local_names():
    assert "fine_tune.lr_ratio" in reads(REPOSITORY / "tasks/fine_tune.py")
    assert "data.test_fraction" in reads(REPOSITORY / "tasks/link_data.py")
    assert "find_lr.seeds" in reads(REPOSITORY / "tasks/find_lr.py")
    assert "train_head.batch_size" in reads(REPOSITORY / "tasks/find_lr.py")


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
