"""Readers and the decoder on bytes that nobody meant: Hypothesis here, and a bounded run of the guided fuzzer.

`make fuzz` runs both for a minute a target.
"""

import importlib.util
import os
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.ingest.labels import read_labels
from headstart.ingest.spelling import clean
from tests.conftest import REPOSITORY
from tests.fuzz import SCRATCH, TARGETS, TREE, labels_csv, params, seeds

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))  # of each test; the same 150 each time where it is not set
settings.register_profile(
    "readers",
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)
settings.load_profile("readers")

SEEDS = {target: seeds(target) for target in TARGETS}
EDIT = st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "delete"]), st.binary(min_size=1, max_size=9))


def edited(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """A whole file, damaged here and there."""
    for where, how, new in edits:
        place = int(where * len(data))
        if how == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ new[0]]) + data[place + 1 :]
        elif how == "cut":
            data = data[:place] if new[0] < 40 else data
        elif how == "insert":
            data = data[:place] + new + data[place:]
        else:
            data = data[:place] + data[place + len(new) :]
    return data


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(target, data):
    whole = data.draw(st.sampled_from(SEEDS[target]))
    TARGETS[target](edited(whole, data.draw(st.lists(EDIT, max_size=6))))


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(target, data):
    TARGETS[target](data)


CELL = st.one_of(st.text(max_size=12), st.sampled_from(["path", "label", "split", "a/1.png", "b/3.jpg", "train", "..", "a"]))


@given(
    st.lists(st.lists(CELL, max_size=5), max_size=6), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_any_table_of_labels_is_read_or_refused(rows, comma, end):
    labels_csv(end.join(comma.join(row) for row in rows).encode(errors="surrogatepass"))


LABEL = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=6).filter(clean)


@given(st.lists(LABEL, min_size=3, max_size=3))
def test_any_label_comes_back_from_a_table_of_labels(labels):
    # a carriage return alone, which to_csv leaves unquoted, ends a row
    path = SCRATCH / "labels.csv"
    frame = pd.DataFrame({"path": list(TREE.files), "label": labels, "more": labels[::-1]})
    frame.to_csv(path, index=False)
    found, blank = read_labels(path, TREE), all(label.startswith(" ") for label in labels)
    assert [clean(row.label) for row in found.rows] == [clean(label) for label in labels]
    more = found.extra["more"]  # of which blank space goes where all have it: it is the file's formatting then
    assert [cell.lstrip(" ") for cell in more] == [label.lstrip(" ") for label in labels[::-1]]
    assert blank or list(more) == labels[::-1]


SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.sampled_from(["auto", "none"])
)
KEY = st.one_of(st.text(max_size=10), st.sampled_from(["seed", "data", "folds", "fold", "formats", "precompute", "augment"]))
NESTED = st.recursive(SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=5)))


@given(NESTED)
def test_any_tree_of_params_is_checked_or_refused(tree):
    import json

    params(json.dumps(tree).encode())  # JSON is YAML


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris has no package for this system")
@pytest.mark.parametrize("target", TARGETS)
def test_the_guided_fuzzer_finds_nothing_in_a_bounded_run(target):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, "--runs", "1000"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "nothing found" in done.stdout
