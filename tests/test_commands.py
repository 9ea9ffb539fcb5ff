"""Every command and every parameter with what is missing, wrong or too much: one screen, what is allowed, nothing changed."""

from __future__ import annotations

import logging
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

import flows
from flows import predict, servers
from headstart.core.params import Params, is_text
from tests.conftest import make_project
from tests.templates import add_mlflow

LINES = 24  # of a screen


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory) -> Path:
    """A project that has never run, and what can be named wrongly in it."""
    project = add_mlflow(make_project(tmp_path_factory.mktemp("commands") / "project"))
    (project / "folder.parquet").mkdir()
    (project / "folder.pt2").mkdir()
    (project / "file").write_text("x")
    (project / "dangling").symlink_to("nowhere")
    return project


@pytest.fixture
def command(somewhere, monkeypatch, capsys):
    """Run a module in this process as `python -m` does; returns the exit code and all it said."""
    monkeypatch.chdir(somewhere)
    for module in (flows, predict, servers):
        monkeypatch.setattr(module, "PROJECT", somewhere)
    handlers = list(logging.getLogger("headstart").handlers)

    def run(module: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        before = (somewhere / "params.yaml").read_bytes()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("ignore", RuntimeWarning)  # it has been imported before
            runpy.run_module(module, run_name="__main__")
        assert (somewhere / "params.yaml").read_bytes() == before
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    yield run
    for handler in [one for one in logging.getLogger("headstart").handlers if one not in handlers]:
        logging.getLogger("headstart").removeHandler(handler)


def refused(command, module: str, arguments: Sequence[str], told: Sequence[str]) -> None:
    code, text = command(module, *arguments)
    assert code == 2, text
    assert "Traceback" not in text and len(text.splitlines()) <= LINES, text
    for one in told:
        assert one in text, text


PORTS = [(port, ["a whole number from 1 to 65535"]) for port in ("0", "-1", "80000", "x", "1.5", "")]
OUT = {
    "folder{}": ["a folder", "name of the file"],
    "nowhere/x{}": ["nowhere: no such folder"],
    "file/x{}": ["file: no such folder"],
    "/proc/x{}": ["/proc: cannot be written to"],
    "x" * 260 + "{}": ["the name is too long", "200 bytes"],
    "": ["wanted a path"],
}
SERVERS = {"flows.serve": "--port", "flows.schedule": "--port", "flows.prefect_server": "--port", "flows.ui": "--mlflow-port"}
MODEL = "models/none.safetensors"


def cases() -> Iterator[tuple[str, list[str], list[str]]]:
    pipeline = "flows.pipeline"
    yield pipeline, ["--set"], ["--set: expected at least one argument"]
    yield pipeline, ["--force"], ["--force: expected at least one argument"]
    yield pipeline, ["--recipe"], ["--recipe: expected one argument"]
    yield pipeline, ["--set", "seed"], ["no '='", "section.key=value"]
    yield pipeline, ["--set", "sed=1"], ["params.yaml has no such key", "one of: backbone"]
    yield pipeline, ["--set", "=1"], ["params.yaml has no such key"]
    yield pipeline, ["--set", "data.source=data/nowhere"], ["data/nowhere: no such folder"]
    yield pipeline, ["--force", "link"], ["--force link: no such stage", "link_data"]
    yield pipeline, ["--recipe", "cats"], ["--recipe cats", "digits, dogs-vs-cats"]
    yield pipeline, ["--recipe", "../params"], ["--recipe ../params", "a name"]
    yield pipeline, ["now"], ["unrecognized arguments: now"]
    yield pipeline, ["--all"], ["unrecognized arguments: --all"]

    predict = "flows.predict"
    yield predict, [], ["required: --out"]
    yield predict, ["--out", "x.csv"], ["neither --images nor --table", "--images PATH"]
    yield predict, ["--images", "data/shapes"], ["required: --out"]
    given = ["--images", "data/shapes", "--out", "x.parquet"]
    for images, said in (("nowhere", "no such folder"), ("file", "not a folder"), ("dangling", "(a link to nowhere): no such")):
        yield predict, ["--images", images, "--out", "x.csv"], [f"--images {images}", said, "every file in it"]
    yield predict, ["--images", "x" * 300, "--out", "x.csv"], ["no such folder"]
    yield predict, ["--images", "", "--out", "x.csv"], ["--images: '': wanted a path"]
    for out, told in OUT.items():
        yield predict, ["--images", "data/shapes", "--out", out.format(".parquet")], told
    yield predict, ["--images", "data/shapes", "--out", "/dev/null", "--format", "csv"], ["a device"]
    yield predict, ["--images", "data/shapes", "--out", "x.txt"], [".parquet or .csv"]
    yield predict, [*given, "--format", "xls"], ["--format", "parquet", "csv"]
    for top in ("0", "-1", "x", "1.5", "9" * 30):
        yield predict, [*given, "--top", top], ["--top", "a whole number of 1 or more"]
    for share in ("2", "-0.1", "nan", "x", "inf"):
        yield predict, [*given, "--abstain-below", share], ["--abstain-below", "a number from 0 to 1"]
    yield predict, [*given, "--model", MODEL], [f"{MODEL}: no such file"]
    yield predict, [*given, "--model", "~nobody-of-this-name/x.safetensors"], ["no such file"]
    yield predict, [*given, "--model", "x" * 300 + ".safetensors"], ["no such file"]
    yield predict, [*given, "--model", "grandmaster"], ["no version of the model is called 'grandmaster'", "champion"]
    yield predict, [*given, "--model", "9" * 20], ["99999999999999999999"]
    yield predict, [*given, "--model", ""], ["no version of the model"]
    yield predict, [*given, "more"], ["unrecognized arguments: more"]

    export = "flows.export"
    yield export, [], ["required: --out"]
    yield export, ["--out", "x.onnx"], [".pt2"]
    for out, told in OUT.items():
        yield export, ["--out", out.format(".pt2"), "--model", MODEL], told
    yield export, ["--out", "x.pt2", "--model", MODEL], [f"{MODEL}: no such file"]
    yield export, ["--out", "x.pt2", "more"], ["unrecognized arguments: more"]

    for module, option in SERVERS.items():
        yield module, [option], [f"{option}: expected one argument"]
        yield module, ["more"], ["unrecognized arguments: more"]
        for port, told in PORTS:
            yield module, [option, port], [option, *told]
    yield "flows.ui", ["--prefect-port", "80000"], ["--prefect-port", "from 1 to 65535"]
    for size in ("-1", "0", "nan", "inf", "x", "1e300"):
        yield "flows.serve", ["--max-mb", size], ["--max-mb", "a number above 0 to 4096"]
    yield "flows.serve", ["--model", "grandmaster"], ["grandmaster"]

    yield "flows.clean", ["--dry-run=yes"], ["--dry-run"]
    yield "flows.clean", ["all"], ["unrecognized arguments: all"]

    link = "flows.link"
    yield link, ["--from"], ["--from: expected one argument"]
    yield link, ["--from", "nowhere"], ["nowhere: no such folder"]
    yield link, ["--from", "~nobody-of-this-name/x"], ["no such folder"]
    yield link, ["--from", ""], ["--from", "wanted a path"]
    yield link, ["--from", "file"], ["a file, not a folder"]
    yield link, ["--from", "data/shapes/", "--name", "a/b"], ["--name 'a/b'", "a plain file name"]
    yield link, ["--name", "x"], ["arguments are required: --from"]
    yield link, ["--relink"], ["arguments are required: --from"]
    yield link, ["--from", "data/shapes", "more"], ["unrecognized arguments: more"]

    register = "flows.register"
    yield register, [], ["models/fine_tuned.safetensors: no such file", "run the pipeline first"]
    yield register, ["--champion"], ["--champion: expected one argument"]
    for version in ("0", "-1", "x", "9" * 20):
        yield register, ["--champion", version], ["--champion", "a whole number of 1 or more"]
    yield register, ["--champion", "99"], ["no version 99"]
    yield register, ["--rollback"], ["there is no champion"]
    yield register, ["--rollback", "--champion", "1"], ["not allowed with"]
    yield register, ["now"], ["unrecognized arguments: now"]

    cache = "flows.cache"
    yield cache, [], ["required: command"]
    yield cache, ["polish"], ["stat", "verify", "prune"]
    yield cache, ["stat"], ["no cache of activations there yet"]
    yield cache, ["--cache-dir", "nowhere", "stat"], ["nowhere: no cache"]
    yield cache, ["--cache-dir", "x" * 300, "stat"], ["no cache"]
    for size in ("-1", "nan", "x"):
        yield cache, ["prune", "--max-gb", size], ["--max-gb", "a number of 0 or more"]
    yield cache, ["stat", "more"], ["unrecognized arguments: more"]

    models = "flows.backbones"
    yield models, [], ["required: NAME"]
    yield models, ["resnt18"], ["resnt18", "similar names"]
    for size in ("0", "-5", "x", "99999"):
        yield models, ["resnet18", "--image-size", size], ["--image-size", "a whole number from 16 to 2048"]
    yield models, ["resnet18", "--big"], ["unrecognized arguments: --big"]


@pytest.mark.parametrize(
    ("module", "arguments", "told"), list(cases()), ids=lambda part: part if isinstance(part, str) else None
)
def test_a_command_with_what_is_missing_wrong_or_too_much(command, module, arguments, told):
    refused(command, module, arguments, told)


def parameters(model: type[BaseModel] = Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every parameter of the schema with its annotation."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from parameters(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def members(kind: Any) -> list[Any]:
    """What an annotation is a union of; literals as their values."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) is list:
        return [list]
    inner = [one for one in get_args(kind) if isinstance(one, type) or get_args(one)]
    return [member for one in inner for member in members(one)] or [kind]


# What is wrong for a parameter that is text: most text is right, until something is looked for by that name.
WRONG_TEXT = {
    "data.source": ["", "data/nowhere", "~nobody-of-this-name", "s3://x"],
    **{f"data.{key}": [""] for key in ("labels_file", "path_column", "label_column", "group_column", "split_by")},
    "data.label_separator": ["", "x" * 11],
    "data.label_pattern": ["", "(", "x" * 1001],
    "data.group_pattern": ["", "[a", "*"],
    "backbone.name": [""],
    "backbone.weights": ["", "~nobody-of-this-name/w.pth"],
    "backbone.weights_sha256": ["", "abc", "F" * 64],
    "fine_tune.unfreeze_from": ["", "last", "3", "All"],
    "runtime.cache_dir": ["", "~nobody-of-this-name/x"],
}


def wrong_values(key: str, kind: Any) -> Iterator[tuple[str, list[str]]]:
    """Values, and the words that are to be named as allowed."""
    if is_text(key):
        yield from ((text, []) for text in WRONG_TEXT[key])
        return
    choices = members(kind)
    words = [str(choice) for choice in choices if isinstance(choice, str)] + (["true", "false"] if bool in choices else [])
    numeric = float in choices or int in choices
    for value in ("surely-not", "{a: 1}", "", "[[1], x]", ".nan", "-1", "-1.0e+300" if numeric else "3"):
        yield value, [] if "[" in value else words


# How many faults a list of two wrong items may have; the items of other lists are text or a single number.
WRONG_INSIDE = {"data.formats": 3, "fine_tune.gradual": 4, "fine_tune.lr": 2, "data.joins": 2, "data.elapsed": 2,
                "data.leave_out": 2, "train_head.columns.layers": 2, "train_head.columns.dropouts": 2}  # fmt: skip


@pytest.mark.parametrize(("key", "kind"), list(parameters()), ids=lambda part: part if isinstance(part, str) else "")
def test_a_parameter_with_a_wrong_type_word_or_number(command, key, kind):
    for value, allowed in wrong_values(key, kind):
        code, text = command("flows.pipeline", "--set", f"{key}={value}")
        assert code == 2 and "Traceback" not in text and len(text.splitlines()) <= LINES, text
        if "no such folder" in text and key == "data.source":
            continue
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {key}")][:1] or [""]
        assert line.partition(": ")[2], f"{value}: {text}"  # what is allowed
        assert all(word in line for word in allowed), text
        inside = WRONG_INSIDE.get(key, 1) if "[" in value else 1
        assert int(text.partition(" wrong:")[0].rpartition(" ")[2]) <= inside, text
        assert not any(part in text for part in (".bool", ".literal", ".float", ".int", "constrained", "list[", ".none")), text


def test_every_parameter_that_is_text_is_tried_with_some():
    assert set(WRONG_TEXT) == {key for key, _ in parameters() if is_text(key)} and len(list(parameters())) > 60


@pytest.mark.parametrize("count", [40, 1])
def test_many_wrong_at_once_are_one_screen(command, count):
    keys = [key for key, kind in parameters() if not is_text(key)][:count]
    wrong = [f"{key}=surely-not" for key in keys]
    refused(command, "flows.pipeline", ["--set", *wrong], [f"{len(keys)} wrong", f"{keys[0]} = "])
