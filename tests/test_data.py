"""Sources, manifest, splits: invariants 6 and 7 of the design."""

import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.data.manifest import HELD_OUT, read_manifest, scan, split_share, write_manifest, write_quarantine
from headstart.data.sources import list_source, preflight
from tests.conftest import encode, picture, write_shapes

OPTIONS = {
    "seed": 0,
    "valid_fraction": 0.2,
    "test_fraction": 0.2,
    "max_quarantined": 0.1,
    "max_pixels": 10_000,
    "workers": 2,
}


def scan_folder(folder: Path, **changes: object):
    preflight(folder)
    return scan(folder, list_source(folder), **(OPTIONS | changes))


def splits(frame: pd.DataFrame) -> dict[str, str]:
    return dict(zip(frame["key"], frame["split"], strict=True))


def test_counts_add_up_and_labels_are_the_folders(shapes):
    (shapes / "a" / "notes.txt").write_bytes(b"text")
    (shapes / "Thumbs.db").write_bytes(b"x")
    (shapes / "README").write_bytes(b"x")
    (shapes / "c" / ".DS_Store").write_bytes(b"x")
    result = scan_folder(shapes)
    files = sum(1 for path in shapes.rglob("*") if path.is_file())
    assert len(result.manifest) + len(result.quarantine) + result.ignored == files
    assert list(result.quarantine["path"]) == ["a/notes.txt"]
    assert (result.manifest["label"] == result.manifest["path"].str.split("/").str[0]).all()
    assert (result.manifest["key"] == [sha256_file(shapes / path) for path in result.manifest["path"]]).all()
    assert set(result.manifest["split"]) == {"train", "valid", "test"}


def test_the_source_is_never_written(shapes):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.is_file() and path.read_bytes())
                for path in [shapes, *shapes.rglob("*")]}  # fmt: skip

    before = state()
    scan_folder(shapes)
    assert state() == before


def test_a_split_never_moves_when_images_are_added_renamed_or_removed(shapes):
    before = splits(scan_folder(shapes).manifest)
    for number in range(100, 140):
        (shapes / "b" / f"{number}.png").write_bytes(encode(picture(1, number)))
    (shapes / "a" / "000.png").rename(shapes / "a" / "other name.png")
    (shapes / "c" / "001.png").unlink()
    after = splits(scan_folder(shapes).manifest)
    assert {key: after[key] for key in before if key in after} == {key: before[key] for key in before if key in after}
    assert len(after) == len(before) + 39


def test_split_shares_are_uniform_and_depend_on_the_seed():
    shares = np.array([split_share(0, f"{i:064x}") for i in range(4000)])
    assert shares.min() >= 0 and shares.max() < 1
    assert abs((shares < 0.2).mean() - 0.2) < 0.02
    assert split_share(0, "k") != split_share(1, "k")


def test_copies_stay_together_and_are_kept_once_per_split(shapes):
    for number in range(20):
        (shapes / "a" / f"copy{number}.png").write_bytes((shapes / "a" / f"{number:03}.png").read_bytes())
    frame = scan_folder(shapes).manifest
    assert (frame.groupby("key")["split"].nunique() == 1).all()


def test_the_sources_own_folders_are_kept_and_valid_is_carved_from_train(tmp_path):
    write_shapes(tmp_path / "s" / "train", each=20)
    for label in "abc":
        (tmp_path / "s" / "test" / label).mkdir(parents=True)
        for number in (50, 51):
            path = tmp_path / "s" / "test" / label / f"{number}.png"
            path.write_bytes(encode(picture("abc".index(label), number)))
    frame = scan_folder(tmp_path / "s").manifest
    in_test = frame["path"].str.startswith("test/")
    assert (frame.loc[in_test, "split"] == "test").all()
    assert set(frame.loc[~in_test, "split"]) == {"train", "valid"}


def test_a_test_image_found_in_train_is_held_out_of_training(tmp_path):
    write_shapes(tmp_path / "s" / "train", each=20)
    write_shapes(tmp_path / "s" / "test", each=2)  # the first two of each class, byte for byte
    frame = scan_folder(tmp_path / "s").manifest
    assert Counter(frame["split"])[HELD_OUT] == 6
    used = frame[frame["split"] != HELD_OUT]
    assert (used.groupby("key")["split"].nunique() == 1).all()
    assert (frame.loc[frame["path"].str.startswith("test/"), "split"] == "test").all()


def test_labels_csv_with_split_and_more_columns(shapes):
    rows = ["path,label,split,camera"]
    for path in sorted(shapes.rglob("*.png")):
        number = int(path.stem)
        split = "test" if number < 3 else "valid" if number < 6 else ""
        rows.append(f"{path.relative_to(shapes).as_posix()},kind-{path.parent.name},{split},{number % 2}")
    (shapes / "labels.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    frame = scan_folder(shapes).manifest
    assert set(frame["label"]) == {"kind-a", "kind-b", "kind-c"}
    assert dict(Counter(frame["split"])) == {"test": 9, "valid": 9, "train": 42}
    assert set(frame["camera"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path;label\na/000.png;x\n", "columns path;label"),
        ("path,label\nnone.png,x\n", "row 2, column path: no file 'none.png'"),
        ("path,label\n../x.png,x\n", "leads out"),
        ("path,label\na/000.png,x\na/000.png,x\n", "row 3, column path: a/000.png is in row 2"),
        ("path,label\na/000.png,\n", "row 2, column label"),
        ("path,label,split\na/000.png,x,dev\n", "row 2, column split: 'dev'"),
        ("path,label\na/000.png,x,y\n", "row 2: not as many cells"),
        ("path,label,key\na/000.png,x,1\n", "reserved"),
    ],
)
def test_a_faulty_labels_csv_is_refused_with_row_and_column(shapes, text, told):
    (shapes / "labels.csv").write_text(text)
    with pytest.raises(InputError, match="labels.csv") as error:
        scan_folder(shapes)
    assert told in str(error.value)


def test_an_unreadable_image_is_quarantined_with_its_reason(shapes):
    whole = encode(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8), "JPEG")
    (shapes / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (shapes / "a" / "big.png").write_bytes(encode(np.zeros((200, 200, 3), np.uint8)))
    result = scan_folder(shapes)
    assert list(result.quarantine["path"]) == ["a/big.png", "a/cut.jpg"]
    assert "pixels" in result.quarantine["reason"][0]
    assert not result.manifest["path"].isin(result.quarantine["path"]).any()


def test_too_many_unreadable_images_refuse_the_run_and_name_them(shapes):
    for number in range(12):
        (shapes / "a" / f"{number:03}.png").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"12 of 60 files.*\n.*a/000.png"):
        scan_folder(shapes)


def test_one_image_with_two_labels_is_refused_with_the_pair(shapes):
    (shapes / "b" / "same.png").write_bytes((shapes / "a" / "000.png").read_bytes())
    with pytest.raises(InputError, match="two labels") as error:
        scan_folder(shapes)
    assert "a/000.png" in str(error.value)
    assert "b/same.png" in str(error.value)


def make_fifo(folder: Path) -> None:
    os.mkfifo(folder / "a" / "pipe")


def make_socket(folder: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder / "a")
    try:
        server.bind("sock")
    finally:
        os.chdir(here)
        server.close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (make_fifo, "a/pipe: not a regular file"),
        (make_socket, "a/sock: not a regular file"),
        (lambda folder: (folder / "a" / "gone.png").symlink_to("/no/such/file"), "gone.png: a link that leads nowhere"),
        (lambda folder: (folder / "loop").symlink_to(folder / "loop"), "loop: a link that leads nowhere"),
        (lambda folder: (folder / "linked").symlink_to(folder / "a"), "linked: a linked sub-folder"),
        (lambda folder: (folder / ".dvcignore").write_text("*"), ".dvcignore: DVC would"),
        (lambda folder: Path(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png")).write_bytes(b""), "not UTF-8"),
    ],
)
def test_what_would_hang_or_mislead_is_refused_unopened(shapes, spoil, told):
    spoil(shapes)
    with pytest.raises(InputError) as error:
        preflight(shapes)
    assert told in str(error.value)


def one_class(folder: Path) -> None:
    for label in "bc":
        for path in (folder / label).iterdir():
            path.unlink()
        (folder / label).rmdir()


def empty_class(folder: Path) -> None:
    (folder / "d").mkdir()


def nested(folder: Path) -> None:
    (folder / "a" / "deep").mkdir()
    (folder / "a" / "deep" / "x.png").write_bytes(encode(picture(0, 77)))


def twin_case(folder: Path) -> None:
    (folder / "A").mkdir()
    (folder / "A" / "x.png").write_bytes(encode(picture(0, 77)))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (one_class, "one class only ('a')"),
        (empty_class, "class folder d"),
        (nested, "a folder inside a class folder"),
        (twin_case, "differ in case only"),
    ],
)
def test_layouts_that_cannot_be_learnt_from_are_refused(shapes, spoil, told):
    spoil(shapes)
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert told in str(error.value)


def test_a_wrong_path_an_empty_folder_and_a_file(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        preflight(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        preflight(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        preflight(tmp_path / "file")


def test_the_manifest_round_trips_with_odd_names_and_equal_bytes(shapes, tmp_path):
    names = ["new\nline.png", 'quo"te.png', "x" * 251 + ".png", "ünïcode.png"]
    for i, name in enumerate(names):
        (shapes / "a" / name).write_bytes(encode(picture(0, 200 + i)))
    frame = scan_folder(shapes).manifest
    write_manifest(tmp_path / "1.parquet", frame)
    write_manifest(tmp_path / "2.parquet", frame.sample(frac=1, random_state=0))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert {f"a/{name}" for name in names} <= set(read_manifest(tmp_path / "1.parquet")["path"])


def test_a_damaged_manifest_is_refused(shapes, tmp_path):
    write_manifest(tmp_path / "m.parquet", scan_folder(shapes).manifest)
    (tmp_path / "m.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:-50])
    with pytest.raises(InputError, match="damaged"):
        read_manifest(tmp_path / "m.parquet")


def test_a_cell_of_the_quarantine_list_starts_no_formula(tmp_path):
    write_quarantine(tmp_path / "q.csv", pd.DataFrame({"path": ["=cmd()", "a.png"], "reason": ["+x", "fine"]}))
    assert (tmp_path / "q.csv").read_text().splitlines()[1] == "'=cmd(),'+x"
