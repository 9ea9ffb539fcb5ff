"""A folder that changes while it is walked, and links in a folder whose files are to be predicted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from headstart.core.errors import InputError
from headstart.ingest.tree import check_folder, preflight, walk
from headstart.prediction.batch import _listed
from tests.conftest import encode, picture, write_shapes
from tests.test_bad_inputs import as_nobody


def walked(folder: Path) -> dict[str, str | None]:
    return {path: reason for path, _, reason in walk(folder, lambda _: True)}


def test_a_file_that_vanishes_while_its_folder_is_walked_is_passed_over(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    steps = walk(tmp_path, lambda _: True)
    first = next(steps)[0]
    gone = next(path.name for path in sorted(tmp_path.iterdir()) if path.name != first)
    (tmp_path / gone).unlink()
    rest = [(path, reason) for path, _, reason in steps]
    assert {first, *(path for path, _ in rest)} == {f"{number}.png" for number in range(6)} - {gone}
    assert not any(reason for _, reason in rest)


def test_a_link_or_a_folder_that_vanishes_is_passed_over_and_a_dangling_link_is_not(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for name in ("b.png", "c.png"):
        (tmp_path / name).symlink_to("a.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    steps = walk(tmp_path, lambda _: True)
    seen = [next(steps)]
    for name in {"b.png", "c.png"} - {seen[0][0]}:
        (tmp_path / name).unlink()
    (tmp_path / "folder").rmdir()
    seen += steps
    reasons = {path: reason for path, _, reason in seen if path != "folder"}
    assert reasons.pop("dangling.png") == "a link that leads nowhere (No such file or directory)"
    assert reasons.keys() <= {"a.png", seen[0][0]} and not any(reasons.values())


def test_what_cannot_be_looked_at_gets_a_row_of_its_own_and_the_rest_goes_on():
    """A folder that may be listed and not entered: each file in it is named, and its neighbours are walked."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        write_shapes(folder, classes=2, each=2)
        folder.chmod(0o755)
        (folder / "a").chmod(0o444)
        found = json.loads(as_nobody(lambda: json.dumps(walked(folder))))
        listed = json.loads(as_nobody(lambda: json.dumps(_listed(folder)[1])))
        folder.chmod(0)
        closed = json.loads(as_nobody(lambda: json.dumps(_listed(folder)[1])))
    finally:
        folder.chmod(0o755)
        (folder / "a").chmod(0o755)
        shutil.rmtree(folder)
    assert found["a/000.png"] == found["a/001.png"] == "its status cannot be read (Permission denied)"
    assert listed == dict.fromkeys(("a/000.png", "a/001.png"), "its status cannot be read (Permission denied)")
    assert closed == {".": "a folder that cannot be read (Permission denied)"}
    assert {path for path, reason in found.items() if not reason} == {"a", "b", "b/000.png", "b/001.png"}


@pytest.mark.parametrize("name", ["lost+found", "System Volume Information", "$RECYCLE.BIN"])
def test_a_systems_folder_that_only_root_may_read_stops_nobody(name):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        write_shapes(folder, classes=2, each=2)
        (folder / name).mkdir()
        folder.chmod(0o755)
        (folder / name).chmod(0)
        assert as_nobody(lambda: str(len(preflight(folder).files))) == "4"
        assert as_nobody(lambda: str(_listed(folder)[1])) == "{}"
    finally:
        shutil.rmtree(folder)


def test_prediction_follows_links_to_files_wherever_they_lead(tmp_path):
    folder, elsewhere = tmp_path / "chosen", tmp_path / "cache"
    for place in (folder, elsewhere):
        place.mkdir()
    (elsewhere / "0a1b").write_bytes(encode(picture(0, 1)))
    (folder / "x.png").symlink_to(elsewhere / "0a1b")
    (folder / "gone.png").symlink_to(elsewhere / "nothing")
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "sub").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe")
    found, errors, ignored = _listed(folder)
    assert list(found) == ["x.png"] and stat.S_ISREG(found["x.png"].st_mode) and ignored == 0
    assert errors == {
        "gone.png": "a link that leads nowhere (No such file or directory)",
        "null.png": "a link to something other than a regular file",
        "sub": "a linked sub-folder, which is not entered",
        "pipe": "not a regular file (a FIFO, a socket or a device)",
    }
    assert "follow_external_links" not in str(errors)


def test_the_parameter_that_follows_links_is_advised_where_it_helps_only(shapes):
    (shapes / "a/pipe").symlink_to("/dev/null")
    with pytest.raises(InputError) as error:
        preflight(shapes)
    assert "follow_external_links" not in str(error.value)
    (shapes.parent / "outside.png").write_bytes(b"x")
    (shapes / "a/x.png").symlink_to(shapes.parent / "outside.png")
    with pytest.raises(InputError, match="data.follow_external_links=true accepts"):
        preflight(shapes)


def test_a_system_folders_files_are_not_predicted(tmp_path):
    for folder in ("@eaDir", "#recycle", "a/.ipynb_checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(encode(picture(0, 1)))
    (tmp_path / "y.png").write_bytes(encode(picture(0, 2)))
    found, errors, ignored = _listed(tmp_path)
    assert (list(found), errors, ignored) == (["y.png"], {}, 3)


def test_a_path_that_the_system_does_not_take_is_no_traceback(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        check_folder(tmp_path / ("x" * 300))
