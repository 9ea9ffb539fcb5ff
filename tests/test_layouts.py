"""Layouts people have: sidecar files, wrapped folders, other names of splits, and all problems of one in one message."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.link import link_source
from flows.param_edits import set_params
from headstart.core.errors import InputError
from headstart.evaluation.sections import data_section
from headstart.ingest import conflicts as conflicts_module
from headstart.ingest.conflicts import Labelled, conflicts
from headstart.ingest.problems import Problem, accepting, refuse
from headstart.ingest.summary import summarise
from headstart.manifest import read_manifest
from tests.conftest import encode, picture, scan_folder, write_shapes
from tests.projects import run_here
from tests.test_link import link_data


def sidecars(folder: Path, each: int = 4) -> int:
    """Files of other kinds beside every image; how many."""
    number = 0
    for path in sorted(folder.rglob("*.png")):
        for ending in (".txt", ".ogg", ".json", ".svg")[:each]:
            path.with_suffix(ending).write_text(f"about {path.name}")
            number += 1
    return number


def remarks(result) -> list[list[str]]:
    return result.notes[result.notes["kind"] == "layout"].to_numpy().tolist()


def test_sidecar_files_are_ignored_by_extension_and_never_count_against_the_limit(shapes):
    number = sidecars(shapes)
    (shapes / "a/000.png.part").write_bytes(b"half")
    result = scan_folder(shapes, max_quarantined=0.0)
    report = summarise(result)
    assert (report["files"], report["images"], report["quarantined"], report["ignored"]) == (61 + number, 60, 0, number + 1)
    assert report["ignored_by_extension"] == {".json": 60, ".ogg": 60, ".part": 1, ".svg": 60, ".txt": 60}
    assert set(result.notes["text"]) == {f"named {kind}, which is no image" for kind in report["ignored_by_extension"]}


def test_they_are_counted_in_the_report_and_in_the_log(project):
    sidecars(project / "data/shapes", each=2)
    said = link_data(project)
    assert "120 ignored (not named like images: 60 .ogg, 60 .txt)" in said and "known from an earlier scan" not in said
    rows = dict(data_section(project / "reports/data")["rows"])
    assert (rows["ignored, named .ogg"], rows["ignored, named .txt"]) == ("60", "60")


@pytest.mark.parametrize("name", ["bare", "x.jpg_large", "photo.2024", "st. petersburg at night"])
def test_without_an_extension_the_content_decides_and_nothing_counts_against_the_limit(shapes, name):
    (shapes / "a" / name).write_bytes(encode(picture(0, 700)))
    (shapes / "b" / name).write_text("no image")
    result = scan_folder(shapes, max_quarantined=0.0)
    assert f"a/{name}" in set(result.manifest["path"])
    assert result.quarantine["path"].tolist() == [f"b/{name}"]


def test_where_no_file_has_an_extension_they_count(shapes):
    for path in shapes.rglob("*.png"):
        path.rename(path.with_suffix(""))
    assert len(scan_folder(shapes, max_quarantined=0.0).manifest) == 60
    (shapes / "a/000").write_text("no image")
    with pytest.raises(InputError, match="1 of 60 files"):
        scan_folder(shapes, max_quarantined=0.0)


def test_a_class_folder_of_other_files_is_refused_saying_what_it_holds(shapes):
    (shapes / "d").mkdir()
    for number in range(3):
        (shapes / "d" / f"{number}.npy").write_bytes(b"x")
    (shapes / "d/readme.txt").write_text("x")
    with pytest.raises(InputError, match="class folder d in .*: no images in it, and 3 .npy, 1 .txt ignored"):
        scan_folder(shapes)


def test_images_by_another_name_only_are_refused_naming_it(tmp_path):
    for path in write_shapes(tmp_path / "s").rglob("*.png"):
        path.rename(path.with_suffix(".dat"))
    with pytest.raises(InputError, match="no images in class folders, and 60 .dat ignored"):
        scan_folder(tmp_path / "s")


def spoil(folder: Path) -> None:
    """Nested folders, one picture under two labels, twins, an empty class."""
    (folder / "a/deep").mkdir()
    (folder / "a/deep/x.png").write_bytes(encode(picture(0, 700)))
    (folder / "b/same.png").write_bytes((folder / "a/000.png").read_bytes())


def test_all_problems_are_told_at_once_before_anything_is_decoded(shapes, monkeypatch):
    from headstart.ingest import scan as module

    spoil(shapes)
    (shapes / "empty").mkdir()
    (shapes / "A").mkdir()
    (shapes / "A/x.png").write_bytes(encode(picture(0, 701)))
    read: list[str] = []
    real = module.examine_all
    monkeypatch.setattr(module, "examine_all", lambda files, *more: (read.extend(files), real(files, *more))[1])
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    told = str(error.value)
    assert "4 problems must be solved first" in told and len(read) == 1, (
        "one picture is decoded, because equal junk is no conflict"
    )
    for part in (
        "folders inside class folders",
        "class folder empty",
        "'A' and 'a' differ only in case",
        "have two labels, once",
    ):
        assert part in told
    assert "'a/000.png' is 'a'" in told and "'b/same.png' is 'b'" in told
    assert "accepts all but 2, 3" in told
    assert told.endswith("python -m flows.pipeline --set data.nested_folders=true data.on_label_conflict=quarantine")


def test_the_command_accepts_what_it_says(shapes):
    spoil(shapes)
    with pytest.raises(InputError, match="--set data.nested_folders=true data.on_label_conflict=quarantine"):
        scan_folder(shapes)
    result = scan_folder(shapes, nested_folders=True, on_label_conflict="quarantine")
    assert len(result.manifest) == 60 and len(result.quarantine) == 2


def test_equal_junk_under_two_labels_is_no_conflict(shapes):
    for label in "ab":
        (shapes / label / "junk.png").write_bytes(b"<html>404</html>")
        (shapes / label / "cut.png").write_bytes(encode(picture(0, 3))[:-30])
    for _ in range(2):  # also where it is known from before
        assert len(scan_folder(shapes).quarantine) == 4


def test_a_conflict_is_found_where_files_are_known_from_before(shapes):
    scan_folder(shapes)
    spoil(shapes)
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert "folders inside" in str(error.value) and "two labels" in str(error.value)


def test_too_many_unusable_files_and_conflicts_are_one_message(shapes, monkeypatch):
    """As where more files are of one size than are looked at before the scan."""
    monkeypatch.setattr(conflicts_module, "MAX_FILES", 0)
    (shapes / "b/same.png").write_bytes((shapes / "a/000.png").read_bytes())
    for number in range(5, 20):
        (shapes / "a" / f"{number:03}.png").write_bytes(b"junk")
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert "15 of 61 files" in str(error.value) and "have two labels, once" in str(error.value)


def test_conflicts_are_those_of_comparing_all_bytes(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(20_000) for _ in range(4)]
    contents += [contents[0][:9_000] + b"x" + contents[0][9_001:], contents[1][:-1] + b"x", b"", b"y"]
    files = []
    for number in range(60):
        data = contents[rng.integers(len(contents))]
        (tmp_path / str(number)).write_bytes(data)
        files.append(Labelled(str(number), "abc"[rng.integers(3)], len(data)))
    groups: dict[bytes, set[str]] = {}
    for file in files:
        groups.setdefault((tmp_path / file.path).read_bytes(), set()).add(file.path)
    labels = {file.path: file.label for file in files}
    wanted = [group for group in groups.values() if len({labels[path] for path in group}) > 1]
    found = conflicts(str(tmp_path), files, {})
    assert sorted(sorted(file.path for file in group) for group in found) == sorted(map(sorted, wanted))
    assert conflicts(str(tmp_path), [*files, Labelled("gone", "a", 1), Labelled("none", "b", 1)], {}) == found


OTHER_NAMES = [("Training", "Testing"), ("TRAIN", "Test"), ("train", "dev"), ("training", "VAL"), ("train ", "test"),
               ("training_set", "test_set"), ("TrainSet", "Test Images"), ("train-data", "testset")]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), OTHER_NAMES)
def test_split_folders_by_other_names(tmp_path, first, second):
    write_shapes(tmp_path / "s" / first)
    for number, label in enumerate("abc"):
        (tmp_path / "s" / second / label).mkdir(parents=True)
        for one in range(3):
            (tmp_path / "s" / second / label / f"{one}.png").write_bytes(encode(picture(number, 500 + one)))
    frame = scan_folder(tmp_path / "s").manifest
    assert set(frame["label"]) == {"a", "b", "c"}
    split = "test" if second.lower().startswith("test") else "valid"
    assert set(frame.loc[frame["path"].str.startswith(f"{second}/"), "split"]) == {split}


def test_names_that_only_begin_like_splits_are_classes(tmp_path):
    write_shapes(tmp_path / "s")
    for old, new in zip("abc", ("trains", "development", "tests"), strict=True):
        (tmp_path / "s" / old).rename(tmp_path / "s" / new)
    assert set(scan_folder(tmp_path / "s").manifest["label"]) == {"trains", "development", "tests"}


@pytest.mark.parametrize("inner", ["", "train", "again"])
def test_a_folder_unpacked_into_itself_is_entered(tmp_path, inner):
    write_shapes(tmp_path / "s/photos" / inner)
    (tmp_path / "s/__MACOSX/photos").mkdir(parents=True)
    (tmp_path / "s/__MACOSX/photos/._000.png").write_bytes(b"x")
    (tmp_path / "s/README.md").write_text("x")
    result = scan_folder(tmp_path / "s")
    assert result.manifest.groupby("label").size().to_dict() == {"a": 20, "b": 20, "c": 20}
    entered = "photos/again/" if inner == "again" else "photos/"
    ((path, _, text),) = remarks(result)
    assert path == entered and f"{entered} was entered" in text
    assert summarise(result)["warned"] == {"layout": 1}
    assert Counter(result.notes["kind"]) == {"ignored": 2, "layout": 1}


def test_a_labels_file_in_the_only_folder_names_paths_from_there(tmp_path):
    folder = write_shapes(tmp_path / "s/photos")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{path},{'xy'[number % 2]}" for number, path in enumerate(paths)]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    result = scan_folder(tmp_path / "s")
    assert set(result.manifest["label"]) == {"x", "y"} and len(result.manifest) == 60
    assert result.manifest["path"].str.startswith("photos/").all()
    assert [row[:2] for row in remarks(result)] == [["photos/", "layout"]]


@pytest.mark.parametrize("spoiled", ["an image beside it", "images in it", "one class in it"])
def test_what_is_no_wrapper_is_not_entered(tmp_path, spoiled):
    folder = write_shapes(tmp_path / "s/photos", classes=1 if spoiled == "one class in it" else 3)
    if spoiled != "one class in it":
        (folder.parent if spoiled == "an image beside it" else folder).joinpath("x.png").write_bytes(encode(picture(0, 900)))
    with pytest.raises(InputError) as error:
        scan_folder(tmp_path / "s")
    assert "only one class ('photos')" in str(error.value) and "folders inside class folders" in str(error.value)


@pytest.mark.parametrize("name", ["test", "Testing", "valid"])
def test_a_flat_unlabelled_folder_beside_train_is_ignored_and_its_split_carved(tmp_path, name):
    write_shapes(tmp_path / "s/train")
    (tmp_path / "s" / name).mkdir()
    for number in range(30):
        (tmp_path / "s" / name / f"{number}.png").write_bytes(encode(picture(0, 500 + number)))
    result = scan_folder(tmp_path / "s", max_quarantined=0.0)
    assert len(result.manifest) == 60 and set(result.manifest["split"]) == {"train", "valid", "test"}
    report = summarise(result)
    assert report["ignored"] == 30 and report["ignored_by_extension"] == {} and report["warned"] == {"layout": 1}
    ((path, _, text),) = remarks(result)
    assert path == name and "30 files" in text and "no labels" in text and "flows.predict" in text


@pytest.mark.parametrize("inner", ["test", "unknown"])
def test_a_folder_of_test_images_that_is_no_class_of_train_has_no_labels(tmp_path, inner):
    write_shapes(tmp_path / "s/train")
    (tmp_path / "s/test" / inner).mkdir(parents=True)
    for number in range(30):
        (tmp_path / "s/test" / inner / f"{number}.png").write_bytes(encode(picture(0, 500 + number)))
    result = scan_folder(tmp_path / "s", max_quarantined=0.0)
    assert set(result.manifest["label"]) == {"a", "b", "c"} and len(result.manifest) == 60
    ((path, _, text),) = remarks(result)
    assert path == "test" and "30 files have no labels" in text


def test_labels_that_are_one_number_are_noted(tmp_path):
    folder = write_shapes(tmp_path / "s")
    for old, new in zip("abc", ("1", "1.0", "01"), strict=True):
        (folder / old).rename(folder / new)
    notes = scan_folder(folder).notes
    assert sorted(text for kind, text in zip(notes["kind"], notes["text"], strict=True) if kind == "label twin") == [
        "its label and another one, '1' and '01', are the same number",
        "its label and another one, '1.0' and '01', are the same number",
    ]


def test_classes_that_nothing_judges_are_said(project):
    source = (project / "data/shapes").resolve()
    (source / "rare").mkdir()
    for number in range(2):
        (source / "rare" / f"{number}.png").write_bytes(encode(picture(1, 700 + number)))
    run_here(project, "tasks.fetch_data")
    log = run_here(project, "tasks.link_data")
    summary = json.loads((project / "reports/data/summary.json").read_text())
    manifest = read_manifest(project / "data/manifest.parquet")
    for split in ("valid", "test"):
        wanted = sorted(set(manifest["label"]) - set(manifest.loc[manifest["split"] == split, "label"]))
        assert summary[f"classes_without_{split}"] == wanted
        assert (f"classes without an image in {split}: {len(wanted)}" in log) == bool(wanted)
    assert "rare" in summary["classes_without_valid"] + summary["classes_without_test"]


def test_one_problem_reads_as_before_and_tells_the_command(shapes):
    with pytest.raises(InputError) as error:
        refuse(shapes, [Problem("found", "wanted", "fix", "data.x=1")], "data/my photos")
    assert str(error.value).splitlines() == [
        "found",
        "  wanted: wanted",
        "  to do:  fix; or accept it: python -m flows.pipeline --set 'data.source=data/my photos' data.x=1",
    ]
    assert accepting([Problem("x")]) == ""
    refuse(shapes, [])


def test_linking_tells_all_problems_and_links_where_a_parameter_accepts_them(project, tmp_path):
    photos = write_shapes(tmp_path / "my photos")
    spoil(photos)
    sidecars(photos, each=1)
    said = link_data(project, "--from", str(photos))
    assert (project / "data/my photos").is_symlink()
    assert "2 problems must be solved first" in said and "62 .txt" in said
    command = next(line for line in said.splitlines() if "to do:  python" in line).partition("to do:")[2]
    settings = shlex.split(command)[4:]
    assert settings == ["data.source=data/my photos", "data.nested_folders=true", "data.on_label_conflict=quarantine"]
    set_params(project / "params.yaml", settings)
    assert "60 images of 3 classes" in link_data(project)
    again = link_data(project, "--from", str(photos))  # the parameters are honoured: nothing stands in the way now
    assert "must be solved first" not in again and "to learn from it: python -m flows.pipeline --set" in again


def test_linking_is_refused_where_the_folder_itself_must_change(project, tmp_path):
    photos = write_shapes(tmp_path / "photos")
    spoil(photos)
    (photos / "empty").mkdir()
    for more in ([], ["--copy-into-dvc"]):
        said = link_data(project, "--from", str(photos), *more, code=2)
        assert "3 problems must be solved first" in said and "accepts all but 2" in said
    assert not (project / "data/photos").exists() and not (project / "data/photos.dvc").exists()


def test_linking_files_whose_names_tell_the_class_names_the_pattern(project, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for label, name in enumerate(("cat", "great_dane")):
        for number in range(30):
            (flat / f"{name}_{number}.png").write_bytes(encode(picture(label, number)))
    said = link_data(project, "--from", str(flat))
    assert "no images in class folders" in said and (project / "data/flat").is_symlink()
    set_params(project / "params.yaml", shlex.split(said.rpartition("--set ")[2]))
    assert "60 images of 2 classes" in link_data(project)


def test_a_pattern_of_another_source_is_named_as_the_cause(project, tmp_path):
    set_params(project / "params.yaml", ["data.label_pattern=^(cat|dog)"])
    said = link_data(project, "--from", str(write_shapes(tmp_path / "photos")))
    assert "by data.label_pattern '^(cat|dog)'" in said and "data.label_pattern=none" in said


def test_nothing_is_decoded_by_linking(project, tmp_path, monkeypatch):
    from headstart.ingest import scan as module

    photos = write_shapes(tmp_path / "photos")
    spoil(photos)
    monkeypatch.setattr(module, "examine_all", None)
    monkeypatch.setattr(Image, "open", None)
    link_source(project, photos, "photos", relink=False, copy=False)
    assert (project / "data/photos").is_symlink()
