"""A rescan reads what changed and nothing else; the same manifest comes out as from nothing."""

import os
import sqlite3
import time
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from headstart.core.errors import InputError
from headstart.ingest.scan_state import COARSE_NS, FINE_NS, scan_state
from tests.conftest import encode, picture, scan_folder


def settle() -> None:
    """Let files become old enough to be trusted by their times."""
    time.sleep(2.5 * FINE_NS / 1e9)


@pytest.fixture
def scanned(shapes):
    settle()
    first = scan_folder(shapes)
    assert first.reread == 60
    return shapes


def same(left, right) -> bool:
    pd.testing.assert_frame_equal(left.manifest, right.manifest)
    pd.testing.assert_frame_equal(left.quarantine, right.quarantine)
    pd.testing.assert_frame_equal(left.notes, right.notes)
    return True


def test_unchanged_files_are_not_opened(scanned):
    assert scan_folder(scanned).reread == 0


def test_incremental_equals_from_scratch(scanned, tmp_path):
    (scanned / "a" / "new.png").write_bytes(encode(picture(0, 500)))
    (scanned / "a" / "000.png").unlink()
    (scanned / "b" / "000.png").write_bytes(encode(picture(1, 501)))
    (scanned / "c" / "001.png").write_bytes(b"junk")
    (scanned / "c" / "000.png").rename(scanned / "c" / "renamed.png")
    incremental = scan_folder(scanned)
    assert incremental.reread == 4
    assert same(incremental, scan_folder(scanned, state=tmp_path / "other.sqlite"))


def test_an_edit_that_keeps_size_and_mtime_is_seen_by_ctime(scanned):
    path = scanned / "a" / "000.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert scan_folder(scanned).reread == 1


def test_other_limits_are_other_answers(scanned):
    assert scan_folder(scanned, max_pixels=9_999).reread == 60


def test_verify_reads_all_and_finds_bit_rot(scanned):
    assert scan_folder(scanned, verify=True).reread == 60
    path = scanned / "a" / "003.png"
    with scan_state(scanned.parent / "scan.sqlite", namespace_of(scanned)) as state:
        (answer,) = state.known([(str(path.resolve()), path.stat())])
        path.write_bytes(encode(picture(2, 999)))
        # what rot looks like: the answer for the former bytes, kept under the status of the present ones
        state.remember([(str(path.resolve()), path.stat(), answer)], time.time_ns() + COARSE_NS)
    assert scan_folder(scanned).reread == 0, "by status alone it cannot be seen"
    with pytest.raises(InputError, match=r"bytes of 1 file\(s\) changed.*\n.*a/003.png"):
        scan_folder(scanned, verify=True)
    assert scan_folder(scanned).reread == 1, "and then it is taken as it is"


def namespace_of(folder) -> str:
    database = sqlite3.connect(folder.parent / "scan.sqlite")
    (namespace,) = database.execute("SELECT DISTINCT namespace FROM files").fetchone()
    database.close()
    return namespace


def test_a_file_changed_just_before_the_scan_is_read_again(shapes):
    (shapes / "a" / "late.png").write_bytes(encode(picture(0, 700)))
    scan_folder(shapes)
    os.utime(shapes / "a" / "late.png")
    scan_folder(shapes)
    settle()
    assert scan_folder(shapes).reread >= 1
    assert scan_folder(shapes).reread == 0


@pytest.mark.parametrize("damage", [b"no database at all", b""])
def test_a_damaged_state_is_made_anew(scanned, damage):
    path = scanned.parent / "scan.sqlite"
    whole = path.read_bytes()
    path.write_bytes(damage or whole[: len(whole) // 2])
    assert scan_folder(scanned).reread == 60
    assert scan_folder(scanned).reread == 0


def test_any_flipped_bit_costs_at_most_time(scanned):
    path = scanned.parent / "scan.sqlite"
    whole = path.read_bytes()
    good = scan_folder(scanned)
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, 100, 15), *rng.integers(100, len(whole), 25), whole.index(b'"mode":"RGB"') + 9]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        assert same(good, scan_folder(scanned))


def test_another_table_in_the_state_is_made_anew(scanned):
    path = scanned.parent / "scan.sqlite"
    path.unlink()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE files (path TEXT PRIMARY KEY, other TEXT)")
    assert scan_folder(scanned).reread == 60
    assert scan_folder(scanned).reread == 0


def test_a_state_that_another_process_holds_is_left_alone(scanned, monkeypatch):
    monkeypatch.setattr("headstart.ingest.scan_state.SECONDS_TO_WAIT", 0.1)
    path = scanned.parent / "scan.sqlite"
    inode = path.stat().st_ino
    with closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert scan_folder(scanned).reread == 60
    assert path.stat().st_ino == inode
    assert scan_folder(scanned).reread == 0


def test_a_file_that_could_not_be_read_is_tried_again(scanned, monkeypatch):
    """Access depends on the reader, not on the file: nothing is remembered."""
    from headstart.ingest import scan as module

    real = module.examine_all

    def refuse(paths, *arguments, **options):
        for answer in real(paths, *arguments, **options):
            yield {"failed": "cannot be read: Input/output error"} if "000" in paths[0] else answer

    known = scan_folder(scanned)
    monkeypatch.setattr(module, "examine_all", refuse)
    with pytest.raises(InputError, match=r"60 of 60 files .* cannot be used"):
        scan_folder(scanned, verify=True)
    monkeypatch.undo()
    again = scan_folder(scanned)
    assert again.reread == 60
    assert same(known, again)


def test_verify_holds_the_files_to_the_manifest_when_the_state_is_lost(scanned):
    first = scan_folder(scanned).manifest
    expected = dict(zip(first["path"], first["key"], strict=True))
    (scanned.parent / "scan.sqlite").unlink()
    assert scan_folder(scanned, verify=True, expected=expected).reread == 60
    (scanned / "a" / "003.png").write_bytes(encode(picture(2, 999)))
    (scanned / "b" / "001.png").write_bytes(b"junk")
    (scanned / "b" / "new.png").write_bytes(encode(picture(2, 998)))
    with pytest.raises(InputError, match=r"bytes of 2 file\(s\) changed since the manifest.*\n.*a/003.png\n.*b/001.png"):
        scan_folder(scanned, verify=True, expected=expected)


def test_a_flipped_bit_in_an_answer_is_noticed(scanned):
    path = scanned.parent / "scan.sqlite"
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE files SET answer = replace(answer, 'RGB', 'RGC') WHERE path LIKE '%a/000.png'")
    database.close()
    assert scan_folder(scanned).reread == 1
