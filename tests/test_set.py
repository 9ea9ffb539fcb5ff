"""`--set` and `--recipe`: what is written arrives as it was written, and what is refused leaves no trace."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from flows import link, pipeline
from flows.execution import FRESH, RAN, check_inputs, run_or_reuse
from flows.param_edits import edit_params, set_params
from headstart.core.errors import InputError, OfTheMachine, Unavailable
from headstart.core.files import no_space
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.ingest.link import check_name
from headstart.versioning import workspace
from tests.conftest import REPOSITORY, write_shapes

ODD = (
    "data/my photos", "data/a #1", "data/#1", "data/x: y", "data/[1]", "[1, 2]", "*all", "&a", "!important", "- item", "-1",
    "?x", "{a: b}", "data/it's", 'data/"x"', "a'b\"c", "data/$HOME", "data/${x}", "data/ü", "data/u\u0308", "data/\u732b",
    "data/\U0001f600", "%x", "@x", "`x`", "|", ">", "data/a, b", "data/ends ", " starts", "two  blanks", "tab\there",
    "line\nbreak", "back\\slash", r"^(\w+)\.\d+$", "true", "no", "null", "none", "~/..", "2024", "1e3", "0x10", "1_000",
    "012", "1:30", "2024-01-01", ".nan", "=", "<<", "a=b=c", "---", "...", "data/" + "x" * 300 + " y" * 100, "nbsp\u00a0here",
    "\u2028", "'", '"', "''x''", "\x7f", "y", "Off", "key: # no comment",
)  # fmt: skip


@pytest.fixture
def params(tmp_path: Path) -> Path:
    copy = tmp_path / "params.yaml"
    copy.write_text((REPOSITORY / "params.yaml").read_text())
    return copy


@pytest.mark.parametrize("text", ODD)
def test_text_arrives_as_it_was_written_for_us_for_dvc_and_for_others(params, text):
    before = params.read_text().splitlines()
    assert set_params(params, [f"data.label_column={text}"]).data.label_column == text
    assert load_params(params).data.label_column == text
    assert load_yaml(str(params))["data"]["label_column"] == text
    assert yaml.safe_load(params.read_text())["data"]["label_column"] == text, "YAML 1.1"
    changed = [(a, b) for a, b in zip(before, params.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and changed[0][1].endswith("# its column with the labels")
    inode = params.stat().st_ino
    set_params(params, [f"data.label_column={text}"])
    assert params.stat().st_ino == inode, "nothing to change"
    set_params(params, ["seed=5"])
    assert load_params(params).data.label_column == text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("'data/x'", "data/x"),
        ('"a b"', "a b"),
        ("'a\"b'", 'a"b'),
        ("'a' or 'b'", "'a' or 'b'"),
        ("'a", "'a"),
        ("'it''s'", "'it''s'"),
    ],
)
def test_quotes_around_all_of_a_text_are_taken_off(params, given, wanted):
    assert set_params(params, [f"data.source={given}"]).data.source == wanted


def test_what_is_no_text_is_read_as_yaml(params):
    found = set_params(
        params, ["seed=5 # five", "fine_tune.lr=[1.0e-4, 1.0e-3, 0.1]", "fine_tune.bn_freeze=auto", "data.fold= 2"]
    )
    assert (found.seed, found.fine_tune.lr, found.fine_tune.bn_freeze, found.data.fold) == (5, [1e-4, 1e-3, 0.1], "auto", 2)


def test_the_home_folder(params, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["data.source=~/photos", "backbone.weights=~/w.pth", "runtime.cache_dir=~/cache", "backbone.name=~/x"]
    found = set_params(params, given)
    assert (found.data.source, found.backbone.weights) == ("/home/me/photos", "/home/me/w.pth")
    assert (found.runtime.cache_dir, found.backbone.name) == ("/home/me/cache", "~/x")
    for key, text in (("source: /home/me", "source: ~"), ("weights: /home/me", "weights: ~")):
        params.write_text(params.read_text().replace(key, text))
    with pytest.raises(InputError) as error:
        load_params(params)
    assert "data.source = '~/photos': ~ is not expanded here: write /home/me/photos" in str(error.value)
    assert "backbone.weights = '~/w.pth'" in str(error.value) and "2 wrong" in str(error.value)
    params.write_text((REPOSITORY / "params.yaml").read_text().replace("cache_dir: .headstart/cache", "cache_dir: ~/cache"))
    assert load_params(params).runtime.cache_dir == "~/cache"


NAMES = (
    "my photos", "a #1", "it's", 'say "x"', "$HOME", "${x}", "Söhne", "u\u0308ber", "[1]", "a, b", "x: y", "x:y", "*", "?",
    "&x", "!x", "a=b", "`id`", "$(id)", "a;b", "a|b", "back\\slash", "{x}", "%20", "~x", "true", "2024", "'x'",
)  # fmt: skip


def printed_command(log: str) -> str:
    (line,) = [line for line in log.splitlines() if "to learn from it: " in line]
    return line.partition("to learn from it: ")[2]


def through_a_shell(command: str, folder: Path) -> list[str]:
    """What a program called `python` gets when a shell runs a command."""
    fake = folder / "bin" / "python"
    fake.parent.mkdir(exist_ok=True)
    code = f"import json, sys; open({str(folder / 'argv')!r}, 'w').write(json.dumps(sys.argv[1:]))"
    fake.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:/usr/bin:/bin", "HOME": "/home/me", "x": "no"}
    subprocess.run(["sh", "-c", command], env=environment, cwd=folder, check=True)
    found: list[str] = json.loads((folder / "argv").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_link_data_prints_works_as_printed(params, tmp_path, name, monkeypatch, caplog):
    monkeypatch.setattr(link.logger, "propagate", True)
    caplog.set_level(logging.INFO, "headstart")
    (tmp_path / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    photos = write_shapes(tmp_path.parent / f"{tmp_path.name}-photos", each=1)
    check_name(tmp_path, photos, name, ())
    link.link_source(tmp_path, photos, name, relink=False, copy=False)
    module, pipeline_module, flag, *assignments = through_a_shell(printed_command(caplog.text), tmp_path)
    assert (module, pipeline_module, flag) == ("-m", "flows.pipeline", "--set")
    found = set_params(params, assignments)
    assert (tmp_path / found.data.source).resolve() == photos.resolve()
    assert found.data.source == load_yaml(str(params))["data"]["source"] == f"data/{name}"
    assert load_graph(tmp_path, found)["link_data"].deps[0] == f"data/{name}"


@pytest.mark.parametrize("name", ["x: #1 'y' $z [ü], *", None])
def test_dvc_follows_an_odd_name_and_an_absolute_source(project, name):
    """None: the folder itself, by its absolute path."""
    if name:
        (project / "data" / name).symlink_to((project / "data/shapes").resolve())
    source = f"data/{name}" if name else str((project / "data/shapes").resolve())
    with contextlib.chdir(project):
        found = set_params(project / "params.yaml", [f"data.source={source}"])
        check_inputs(project, found, [])
        with workspace(project) as space:
            stage = load_graph(project, found)["link_data"]
            assert run_or_reuse(stage, space, project, found, False).how == RAN
            assert run_or_reuse(stage, space, project, found, False).how == FRESH
            (project / "data/shapes/a/000.png").unlink()
            assert not space.is_fresh("link_data"), "a change of the folder is seen"


@pytest.fixture
def command(project, monkeypatch):
    """`flows.pipeline`'s main in a project, its flow replaced by a function; returns params.yaml's bytes and main's error."""
    monkeypatch.setattr(pipeline, "PROJECT", project)
    monkeypatch.chdir(project)

    def main(flow, *arguments: str) -> tuple[bytes, BaseException | None]:
        monkeypatch.setattr(pipeline, "run_here", flow)
        monkeypatch.setattr(pipeline, "summary_text", lambda *_: "")
        monkeypatch.setattr(sys, "argv", ["flows.pipeline", *arguments])
        error = None
        try:
            pipeline.main()
        except (InputError, KeyboardInterrupt, ZeroDivisionError) as raised:
            error = raised
        return (project / "params.yaml").read_bytes(), error

    return main


def raising(error: BaseException):
    def flow(force: list[str]) -> list:
        raise error

    return flow


CHANGES = (
    ["--set", "train_head.epochs=7", "data.test_fraction=0.3"],
    ["--recipe", "pets-breeds", "--set", "data.source=data/shapes"],
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_flow_refuses_does_not_stay_in_params_yaml(command, project, change):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0 ", "seed:   0 "))  # as no writer of ours would put it
    before = path.read_bytes()
    after, error = command(raising(InputError("too few images", wanted="more")), *change)
    assert after == before
    assert str(error) == "too few images\n  wanted: more\n  params.yaml is as it was before --set"
    for flow in (
        raising(Unavailable("busy")),
        raising(no_space(path)),
        raising(KeyboardInterrupt()),
        raising(ZeroDivisionError()),
    ):
        path.write_bytes(before)
        after, error = command(flow, *change)
        assert after != before and error is not None and "as it was" not in str(error)
    path.write_bytes(before)
    after, error = command(lambda force: [], *change)
    assert after != before and error is None


def test_before_the_flow_begins_nothing_is_written(command, project):
    before = (project / "params.yaml").read_bytes()

    def flow(force: list[str]) -> list:
        raise AssertionError("it must not begin")

    for change in (
        ["--set", "data.source=data/nowhere"],
        ["--recipe", "pets-breeds", "--set", "data.source=data/nowhere"],
        ["--set", "train_head.epochs=3", "--force", "nothing"],
        ["--set", "train_head.epochs=3", "seed=x"],
    ):
        after, error = command(flow, *change)
        assert after == before and isinstance(error, InputError), change


def test_what_somebody_wrote_meanwhile_stays(command, project):
    path = project / "params.yaml"

    def flow(force: list[str]) -> list:
        path.write_text(path.read_text() + "# mine\n")
        raise InputError("params.yaml changed since this process started")

    after, error = command(flow, "--set", "train_head.epochs=7")
    assert after.endswith(b"# mine\n") and b"epochs: 7" in after and "as it was" not in str(error)


def test_without_a_change_nothing_is_said_of_one(command):
    _, error = command(raising(InputError("x")))
    assert str(error) == "x"
    _, error = command(raising(InputError("x")), "--set", "seed=0")
    assert str(error) == "x"


def test_a_full_disk_is_the_machines_and_bad_input_is_not():
    assert issubclass(Unavailable, OfTheMachine) and isinstance(no_space(Path("x")), OfTheMachine)
    assert not isinstance(InputError("x"), OfTheMachine)


def test_a_diff_is_of_what_changes_alone_whoever_wrote_the_file(params):
    long = "fine_tune.gradual=[" + ", ".join(["{unfreeze_from: late, epochs: 1, lr: 1.0e-3}"] * 4) + "]"
    set_params(params, [long])
    edit = edit_params(params, ["seed=3"])
    assert [line for line in edit.diff().splitlines()[3:] if line[:1] in "+-"] == [
        line for line in edit.diff().splitlines() if "seed:" in line
    ]
