"""labels.csv as people write it: what means one file only is accepted with a note, all else refused with its likely cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.core.errors import InputError
from headstart.ingest.labels import read_labels
from headstart.ingest.scan import Scan
from headstart.ingest.tree import File, preflight
from tests.conftest import encode, picture, scan_folder, write_shapes


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def write(folder: Path, cell: Callable[[str], str], *, comma: str = ",", head: str = "", encoding: str = "utf-8") -> None:
    """labels.csv of all images, each path as `cell` has it, its label the folder's name."""
    paths = names(folder)
    rows = [head or f"path{comma}label", *(f"{cell(path)}{comma}{path.split('/')[-2]}" for path in paths)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding=encoding)


def noted(result: Scan) -> list[list[str]]:
    """All notes (path, kind, text) but those of ignored files."""
    return result.notes[result.notes["kind"] != "ignored"].to_numpy().tolist()


def only_note(folder: Path) -> tuple[str, str]:
    """The kind and the text of the only note of a scan that takes all 60 images by their right labels."""
    result = scan_folder(folder)
    assert len(result.manifest) == 60
    assert (result.manifest["label"] == result.manifest["path"].str.split("/").str[-2]).all()
    ((path, kind, text),) = noted(result)
    assert path == "labels.csv"
    return kind, text


FORMATS: dict[str, tuple[dict[str, str], str]] = {
    "semicolons": ({"comma": ";"}, "its columns are separated by semicolons"),
    "tabs": ({"comma": "\t"}, "its columns are separated by tabs"),
    "byte order mark": ({"encoding": "utf-8-sig"}, "it begins with a byte order mark (BOM)"),
    "capital letters": ({"head": "path,Label"}, "its column 'Label' is read as label"),
    "blanks after commas": ({"comma": ", "}, "blank space after commas in 61 rows"),
    "blanks and quotes": ({"comma": ', "', "head": 'path, "label"'}, "blank space after commas in 61 rows"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats_are_read_with_a_note(shapes, kind):
    options, told = FORMATS[kind]
    write(shapes, lambda path: path, **options)
    if "quotes" in kind:
        text = (shapes / "labels.csv").read_text().splitlines()
        (shapes / "labels.csv").write_text("\n".join([text[0], *(f'{line}"' for line in text[1:])]))
    assert only_note(shapes) == ("labels format", told)


def test_a_split_in_capitals_is_read_where_the_whole_header_is_and_else_noted(shapes):
    rows = [f"{path},{path[0]},{'test' if '1.png' in path else ''}" for path in names(shapes)]
    for head, test_images, told in (
        ("Path,Label,Split", {path for path in names(shapes) if "1.png" in path}, "its column 'Split' is read as split"),
        ("path,label,Split", None, "its column 'Split' is a further column, not split"),
    ):
        (shapes / "labels.csv").write_text("\n".join([head, *rows]))
        result = scan_folder(shapes)
        assert told in [text for _, _, text in noted(result)]
        if test_images:
            assert set(result.manifest.loc[result.manifest["split"] == "test", "path"]) == test_images
        else:
            assert set(result.manifest["Split"]) == {"test", ""}


def test_a_spreadsheets_table_has_all_of_it_at_once(shapes):
    write(shapes, lambda path: path.replace("/", "\\"), comma="; ", encoding="utf-8-sig")
    result = scan_folder(shapes)
    assert len(result.manifest) == 60
    assert sorted(kind for _, kind, _ in noted(result)) == ["labels format", "labels format", "labels format", "labels path"]


PATHS: dict[str, tuple[Callable[[str], str], str]] = {
    "backslashes": (lambda path: path.replace("/", "\\"), r"backslashes for slashes in 60 paths: 'a\\000.png' is read as"),
    "no extension": (lambda path: path[:-4], "no extension in 60 paths: 'a/000' is read as 'a/000.png'"),
    "other case": (lambda path: path.replace("png", "PNG"), "another case in 60 paths: 'a/000.PNG' is read as 'a/000.png'"),
    "other case of a folder": (str.upper, "another case in 60 paths: 'A/000.PNG' is read as 'a/000.png'"),
    "invisible characters": (lambda path: f"{path}\u200b", "white space or invisible characters in 60 paths:"),
    "blank at the end": (lambda path: f"{path} ", "white space or invisible characters in 60 paths:"),
    "the folder's own name": (lambda path: f"shapes/{path}", "the folder's own name in front in 60 paths:"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PATHS)
def test_other_spellings_of_paths_are_read_with_one_note_that_counts(shapes, kind):
    cell, told = PATHS[kind]
    write(shapes, cell)
    noted, text = only_note(shapes)
    assert noted == "labels path" and told in text


def test_a_dot_before_the_path_is_a_path(shapes):
    write(shapes, lambda path: f"./{path}")
    assert noted(scan_folder(shapes)) == []


def test_absolute_paths_within_the_folder_also_through_a_link(shapes):
    write(shapes, lambda path: f"{shapes}/{path}")
    assert "an absolute path in 60 paths" in only_note(shapes)[1]
    link = shapes.parent / "link"
    link.symlink_to(shapes)
    write(shapes, lambda path: f"{link}/{path}")
    assert "an absolute path in 60 paths" in only_note(shapes)[1]
    assert len(scan_folder(link).manifest) == 60


def test_a_sub_folder_left_out_and_the_extension_with_it(tmp_path):
    for number, label in enumerate("xyz"):
        for one in range(20):
            path = tmp_path / "s/images" / label / f"{label}{one}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(number, one)))
    for cell, kinds in (
        (lambda path: path.split("/")[-1], ["a sub-folder left out"]),
        (lambda path: path.removeprefix("images/"), ["a sub-folder left out"]),
        (lambda path: path.split("/")[-1][:-4], ["a sub-folder left out", "no extension"]),
    ):
        write(tmp_path / "s", cell)
        result = scan_folder(tmp_path / "s")
        assert (result.manifest["label"] == result.manifest["path"].str.split("/").str[1]).all()
        assert sorted(text.split(" in 60 paths")[0] for _, _, text in noted(result)) == kinds


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("000.png,x", "no file '000.png' in {folder}, but it could mean 3 files: 'a/000.png', 'b/000.png', 'c/000.png'"),
        ("A/Twin,x", "but it could mean 2 files: 'a/twin.jpg', 'a/twin.png'"),
        ("a/000.jpg,x", "no file 'a/000.jpg' in {folder}; 'a/000.png' exists"),
        ("https://example.com/1.png,x", "it is a web address"),
        ("a,x", "no file 'a' in {folder}; it is a folder"),
        ("/elsewhere/a/000.png,x", "'/elsewhere/a/000.png' leads out of the folder; 'a/000.png' exists"),
        ("C:\\photos\\a\\000.png,x", "leads out of the folder; 'a/000.png' exists"),
        ("../a/000.png,x", "'../a/000.png' leads out of the folder"),
    ],
)
def test_what_is_not_one_file_is_refused_with_the_likely_cause(shapes, row, told):
    for extension in ("jpg", "png"):
        (shapes / f"a/twin.{extension}").write_bytes(b"x")
    (shapes / "labels.csv").write_text(f"path,label\n{row}\n")
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert "labels.csv row 2, column path: " in str(error.value)
    assert told.format(folder=shapes.resolve()) in str(error.value)


def test_ten_bad_rows_are_listed_at_once(shapes):
    rows = [f"a/none{number}.png,x" for number in range(12)] + ["a/000.png,", "a/001.png,x", "a/./001.png,y"]
    (shapes / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    told = str(error.value)
    assert "labels.csv: 14 rows cannot be used:" in told and "… and 4 more" in told
    assert "row 2, column path: no file 'a/none0.png'" in told and "row 11, column path" in told and "row 12," not in told


def test_a_name_that_begins_with_a_blank_is_the_file_of_that_name(shapes):
    """And not the other one, whose name the trimmed cell would be."""
    (shapes / " 1.png").write_bytes(encode(picture(0, 901)))
    (shapes / "1.png").write_bytes(encode(picture(1, 902)))
    rows = [f"{path}, {path.split('/')[0].strip()}" for path in names(shapes)]
    (shapes / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    frame = scan_folder(shapes).manifest
    assert {" 1.png", "1.png"} <= set(frame["path"])


def test_blanks_of_further_columns_stay_where_not_all_cells_have_them(shapes):
    rows = [f"{path}, {path[0]}, {number},{' ' * (number % 2)}x" for number, path in enumerate(names(shapes))]
    (shapes / "labels.csv").write_text("path, label, number,text\n" + "\n".join(rows) + "\n")
    frame = scan_folder(shapes).manifest
    assert set(frame["number"]) == {str(number) for number in range(60)}
    assert set(frame["text"]) == {"x", " x"}


def test_every_listed_file_is_a_candidate_whatever_its_name(shapes):
    (shapes / "a/odd.dat").write_bytes(encode(picture(0, 77)))
    (shapes / "a/bare").write_bytes(b"no image")
    write(shapes, lambda path: path)
    with (shapes / "labels.csv").open("a") as stream:
        stream.write("a/odd.dat,a\na/bare,a\n")
    result = scan_folder(shapes)
    assert "a/odd.dat" in set(result.manifest["path"]) and result.quarantine["path"].tolist() == ["a/bare"]
    with pytest.raises(InputError, match="1 of 62 files"):
        scan_folder(shapes, max_quarantined=0.0)


class Walked(dict[str, File]):
    """Counts how often all of it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        type(self).times += 1
        return super().__iter__()


def test_no_row_goes_through_all_files(tmp_path):
    """So that 100,000 rows stay quick, each of them spelled in another way."""
    write_shapes(tmp_path, each=2)
    tree = preflight(tmp_path)
    status = next(iter(tree.files.values()))
    files = Walked({f"train/c{one % 50}/{one}.jpg": status for one in range(3_000)})
    rows = "\n".join(f"C{one % 50}\\{one},{one % 9}" for one in range(3_000))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows)
    found = read_labels(tmp_path / "labels.csv", replace(tree, files=files))
    assert [row.path for row in found.rows] == list(dict(files))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows.replace("C", "none"))
    with pytest.raises(InputError, match="1,000 or more rows"):
        read_labels(tmp_path / "labels.csv", replace(tree, files=files))
    assert Walked.times <= 10
