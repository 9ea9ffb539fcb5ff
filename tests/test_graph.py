"""dvc.yaml depends on exactly the code that a stage imports and the parameters that it reads; the layers hold."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from headstart.core import code_digest
from headstart.core.code_digest import closure, digest
from headstart.core.graph import Stage, load_graph
from headstart.core.params import Params, load_params
from scripts import rooms
from scripts.code_deps import MOST_IDLE, as_deps, idle_share
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


def code(name: str) -> list[str]:
    """A stage's code dependencies in dvc.yaml."""
    return [dep for dep in GRAPH[name].deps if dep.startswith(("headstart/", "tasks/", "flows/"))]


def test_stages_and_their_order_and_commands():
    assert list(GRAPH) == ORDER
    assert all(stage.command == f"python -m tasks.{name}" for name, stage in GRAPH.items())
    assert {path.stem for path in (REPOSITORY / "tasks").glob("*.py")} == {*ORDER, "__init__"}


def test_a_stage_reads_only_what_earlier_stages_or_the_checkout_give():
    made = {"data/digits"}
    for stage in GRAPH.values():
        for dep in stage.deps:
            produced = any(Path(dep) == Path(out) or Path(out) in Path(dep).parents for out in made)
            assert produced or (REPOSITORY / dep).exists(), (stage.name, dep)
        made |= set(stage.outs)


@pytest.mark.parametrize("name", ORDER)
def test_code_dependencies_are_a_stage_s_imports(name):
    assert code(name) == as_deps(closure(f"tasks.{name}")), "run: make deps"


@pytest.mark.parametrize("name", ORDER)
def test_hardly_a_line_that_a_stage_depends_on_is_idle(name):
    files = closure(f"tasks.{name}")
    assert idle_share(code(name), files) <= MOST_IDLE == 0.05
    covered = {file for file in files if any(file == dep or file.startswith(f"{dep}/") for dep in code(name))}
    assert covered == set(files)


IMPORTED = """
import os, sys
import mlflow, timm, torch  # once for all forks
for name in sys.argv[1:]:
    if not os.fork():
        __import__(f"tasks.{name}")
        first_party = [m for n, m in sys.modules.items() if n.partition(".")[0] in ("headstart", "tasks", "flows")]
        print(*(f"{name} {module.__file__}" for module in first_party), sep="\\n", flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_closure_has_all_that_python_imports():
    """Against Python itself: every first-party module that importing a task loads is in its closure."""
    command = [sys.executable, "-c", IMPORTED, *ORDER]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    loaded = [line.split() for line in said.splitlines()]
    for name in ORDER:
        files = {Path(file).relative_to(REPOSITORY).as_posix() for stage, file in loaded if stage == name}
        assert len(files) > 10
        assert files <= set(closure(f"tasks.{name}")), name


TRAINED = {"find_lr", "train_head", "fine_tune"}
TOUCHED = {  # a file: the stages that run again when it changes
    "headstart/evaluation/report.html.j2": {"evaluate"},
    "headstart/evaluation/galleries.py": {"evaluate"},
    "headstart/evaluation/curves.py": {"evaluate"},
    "headstart/evaluation/sections.py": {"evaluate"},
    "headstart/targets/reports/plots.py": {"evaluate"},
    "headstart/targets/reports/classification.py": {"evaluate"},
    "headstart/targets/reports/single_label.py": {"evaluate"},
    "headstart/targets/reports/single_label.html.j2": {"evaluate"},
    "headstart/targets/target.py": {*TRAINED, "evaluate"},
    "headstart/targets/kinds.py": {*TRAINED, "evaluate"},
    "headstart/targets/single_label.py": {*TRAINED, "evaluate"},
    "headstart/targets/labels.py": {"link_data", *TRAINED, "evaluate"},  # activations know no labels
    "headstart/prediction/predictor.py": {"evaluate"},
    "headstart/datasets/downloads.py": {"fetch_data"},
    "headstart/datasets/builtin.py": {"fetch_data"},
    "headstart/ingest/worker.py": {"link_data"},
    "headstart/ingest/scan.py": {"link_data"},
    "headstart/ingest/listing.py": {"link_data"},
    "headstart/versioning.py": {"link_data"},
    "headstart/activations/build.py": {"precompute"},
    "headstart/activations/namespace.py": {"precompute"},
    "headstart/training/tuning.py": {"fine_tune"},
    "headstart/training/bn_choice.py": {"fine_tune"},
    "headstart/models/depthwise.py": {"fine_tune"},
    "headstart/training/lr_report.py": {"find_lr", "fine_tune"},
    "headstart/training/loop.py": TRAINED,
    "headstart/training/schedules.py": TRAINED,
    "headstart/tracking/runs.py": TRAINED,
    "headstart/models/heads.py": {*TRAINED, "evaluate"},
    "headstart/activations/engine.py": {"precompute", "fine_tune", "evaluate"},
    "headstart/images/decode.py": {"link_data", "precompute", "fine_tune", "evaluate"},  # the others read no image
    "headstart/images/transforms.py": {"precompute", "fine_tune", "evaluate"},
    "headstart/manifest.py": {*ORDER} - {"fetch_data"},
    "headstart/core/stages.py": {*ORDER},
    "tasks/find_lr.py": {"find_lr"},
    "headstart/web.py": set(),
    "headstart/prediction/batch.py": set(),
    "headstart/prediction/export.py": set(),
    "headstart/prediction/scorer.py": set(),
    "headstart/prediction/supervisor.py": set(),
    "headstart/tracking/model.py": set(),
    "headstart/tracking/promotion.py": set(),
    "headstart/tracking/record.py": set(),
    "headstart/tracking/registry.py": set(),
    "headstart/tracking/scoring.py": set(),
    "headstart/tracking/served.py": set(),
}


def run_again(path: str) -> set[str]:
    """Stages that depend on a file by dvc.yaml."""
    assert (REPOSITORY / path).is_file(), path
    return {name for name in ORDER if any(path == dep or path.startswith(f"{dep}/") for dep in code(name))}


@pytest.mark.parametrize(("path", "stages"), TOUCHED.items())
def test_a_touched_file_runs_exactly_the_stages_that_use_it(path, stages):
    assert run_again(path) == stages


def test_no_command_and_no_server_runs_a_stage_again():
    commands = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "flows").glob("*.py"))
    assert {"flows/pipeline.py", "flows/cache.py", "flows/serve.py", "flows/ui.py"} <= set(commands)
    assert {path: run_again(path) for path in commands if run_again(path)} == {}


@pytest.mark.parametrize("name", ["fine_tune", "link_data"])
def test_the_digest_of_a_stage_s_code_changes_with_what_it_runs_alone(name, tmp_path):
    for package in code_digest.FIRST_PARTY:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = closure(f"tasks.{name}", root=tmp_path)
    assert files == closure(f"tasks.{name}")
    before = digest(files, code_digest.file_digests(tmp_path))
    assert before == digest(files)
    for path in ("flows/ui.py", "headstart/web.py", "headstart/evaluation/report.html.j2"):
        (tmp_path / path).write_text((tmp_path / path).read_text() + "\n")
    assert digest(files, code_digest.file_digests(tmp_path)) == before
    for path in files:
        text = (tmp_path / path).read_text()
        (tmp_path / path).write_text(text + "\n")
        assert digest(files, code_digest.file_digests(tmp_path)) != before, path
        (tmp_path / path).write_text(text)


def test_what_counts_as_a_use(tmp_path):
    files = {
        "headstart/__init__.py": "",
        "headstart/a.py": "import headstart.b\nif TYPE_CHECKING:\n    import headstart.types\n",
        "headstart/b.py": 'def f():\n    from headstart.room import c\nif __name__ == "__main__":\n    import headstart.late\n',
        "headstart/room/__init__.py": "",
        "headstart/room/c.py": 'COMMAND = ("-m", "headstart.room.child")\nPAGE = "page.j2"\nOTHER = "absent.j2"\n',
        "headstart/room/child.py": "import os, torch\n",
        "headstart/room/page.j2": "",
        "headstart/room/idle.py": "",
        "headstart/types.py": "",
        "headstart/late.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    used = {"headstart/__init__.py", "headstart/a.py", "headstart/b.py"}
    room = {f"headstart/room/{name}" for name in ("__init__.py", "c.py", "child.py", "page.j2")}
    assert set(closure("headstart.a", root=tmp_path)) == used | room
    assert set(closure("headstart.a", root=tmp_path, without=("headstart/room",))) == used


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


def test_what_the_scan_starts_with_imports_no_torch():
    modules = ("core.command_line", "core.progress", "seeds", "hardware", "ingest.scan", "ingest.worker")
    code = f"import sys, {', '.join(f'headstart.{one}' for one in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_picture_of_the_rooms_is_current():
    assert rooms.PICTURE.read_text() == rooms.draw(rooms.imports()), "run: make rooms"


def test_rooms_that_import_each_other_are_refused():
    with pytest.raises(SystemExit, match="in a circle: a, b"):
        rooms.reduced({"a": frozenset({"b"}), "b": frozenset({"a"}), "c": frozenset()})
    slim = rooms.reduced({"a": frozenset({"b", "c"}), "b": frozenset({"c"}), "c": frozenset()})
    assert slim == {"a": {"b"}, "b": {"c"}, "c": frozenset()}


def test_every_type_of_the_glossary_exists():
    names = re.findall(r"^\| `([\w.]+)` \|", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(names) > 30
    for module, _, name in (name.rpartition(".") for name in names):
        assert isinstance(getattr(importlib.import_module(module), name), type), name
