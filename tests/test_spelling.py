"""Labels, class folders and groups that differ in white space or in what nobody sees."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.core.errors import InputError
from headstart.ingest.spelling import clean, fold
from headstart.ingest.summary import summarise
from tests.conftest import encode, picture, scan_folder, write_shapes
from tests.test_labels_file import noted

NBSP, ZERO_WIDTH, SOFT_HYPHEN, MARK, WORD_JOINER = "\u00a0", "\u200b", "\u00ad", "\ufeff", "\u2060"
ENGLAND, SCOTLAND = (
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(sign)) for sign in letters) + "\U000e007f" for letters in ("gbeng", "gbsct")
)
KEPT = {
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Hindi": "\u0915\u094d\u200d\u0937",
    "emoji": "\U0001f469\u200d\U0001f52c",
    "England": ENGLAND,
    "Scotland": SCOTLAND,
    "Arabic number sign": "\u0600\u0661\u0662",
    "words": "great horned owl",
    "accents": "caf\u00e9",
}
CLEANED = {
    "blank at the end": ("cat ", "cat"),
    "blank at the beginning": ("\tcat", "cat"),
    "no-break space at the end": (f"cat{NBSP}", "cat"),
    "no-break space inside": (f"sea{NBSP}lion", "sea lion"),
    "ideographic space": ("\u3000cat", "cat"),
    "zero width": (f"c{ZERO_WIDTH}at", "cat"),
    "soft hyphen": (f"cro{SOFT_HYPHEN}codile", "crocodile"),
    "byte order mark": (f"{MARK}cat", "cat"),
    "word joiner": (f"cat{WORD_JOINER}", "cat"),
    "direction marks": ("\u202acat\u202c\u200e", "cat"),
    "joiner in ASCII": ("c\u200dat", "cat"),
    "joiner at the end": (KEPT["emoji"] + "\u200d", KEPT["emoji"]),
    "joiner beside a blank": ("\u0645\u06cc\u200c \u062e", "\u0645\u06cc \u062e"),
    "tags without a flag": ("cat\U000e0067", "cat"),
    "nothing to see": (f" {ZERO_WIDTH}{NBSP}", ""),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_needed_to_read_a_name_stays(kind):
    assert clean(KEPT[kind]) == KEPT[kind]


@pytest.mark.parametrize("kind", CLEANED)
def test_what_nobody_sees_goes(kind):
    spelled, name = CLEANED[kind]
    assert clean(spelled) == name == clean(name)
    assert fold(spelled) == fold(name)


def class_folder(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    for number in range(6):
        (folder / name / f"{number}.png").write_bytes(encode(picture(1, 700 + number + 10 * len(name))))


@pytest.mark.parametrize("kind", sorted(set(CLEANED) - {"nothing to see", "joiner at the end"}))
def test_a_class_folder_is_read_by_its_clean_name_with_a_note_that_counts(shapes, kind):
    spelled, name = CLEANED[kind]
    class_folder(shapes, spelled)
    result = scan_folder(shapes)
    assert set(result.manifest["label"]) == {"a", "b", "c", name}
    notes = result.notes[result.notes["kind"] == "label spelling"]
    assert notes["text"].tolist() == [f"{spelled!r} is read as {name!r} (6 files)"]
    assert summarise(result)["warned"] == {"label spelling": 1}


@pytest.mark.parametrize("spelled", ["a ", f"a{NBSP}", f"{ZERO_WIDTH}a", "a\u200d", f"a{SOFT_HYPHEN}"])
def test_two_spellings_of_a_class_folder_are_refused_naming_both(shapes, spelled):
    class_folder(shapes, spelled)
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert f"{spelled!r}" in str(error.value) and "'a'" in str(error.value)
    assert spelled == "a " or spelled not in str(error.value), "what nobody sees is shown by its number"


def test_two_spellings_in_two_splits_are_refused_too(tmp_path):
    write_shapes(tmp_path / "s/train")
    for name in ("a ", "b", "c"):
        class_folder(tmp_path / "s/test", name)
    with pytest.raises(InputError, match="'a' and 'a ' differ only in white space"):
        scan_folder(tmp_path / "s", on_label_conflict="quarantine")


def test_class_folders_that_differ_by_blanks_within_are_refused(shapes):
    class_folder(shapes, "black cat")
    class_folder(shapes, "black  cat")
    with pytest.raises(InputError, match="'black  cat' and 'black cat' differ only in case, inner white space"):
        scan_folder(shapes)


def test_a_class_folder_without_a_name_that_is_seen_is_refused(shapes):
    class_folder(shapes, f" {ZERO_WIDTH}")
    with pytest.raises(InputError, match="name of a class folder is only white space or invisible characters"):
        scan_folder(shapes)


def table(folder: Path, labels: dict[str, str], more: str = "") -> None:
    """A labels.csv; `labels` by the folder, with what is to stand in the cell."""
    rows = [f"{path.relative_to(folder).as_posix()},{labels[path.parent.name]}" for path in sorted(folder.rglob("*.png"))]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows) + more + "\n", encoding="utf-8")


def test_blank_space_after_the_delimiter_is_the_files_formatting(shapes):
    table(shapes, {"a": " cat", "b": "cat", "c": " dog"})
    result = scan_folder(shapes)
    assert result.manifest.groupby("label").size().to_dict() == {"cat": 40, "dog": 20}
    assert noted(result) == [["labels.csv", "labels format", "blank space after commas in 40 rows"]]


def test_a_label_with_blanks_in_one_spelling_only_is_read_with_a_note(shapes):
    table(shapes, {"a": "sea\u00a0lion", "b": "cat ", "c": "dog"})
    result = scan_folder(shapes)
    assert set(result.manifest["label"]) == {"sea lion", "cat", "dog"}
    assert sorted(text for _, _, text in noted(result)) == [
        "'cat ' is read as 'cat' (20 files)", "'sea\\xa0lion' is read as 'sea lion' (20 files)",
    ]  # fmt: skip


@pytest.mark.parametrize("spelled", ["cat ", f"cat{NBSP}", f"c{ZERO_WIDTH}at"])
def test_two_spellings_of_a_label_are_refused_naming_both(shapes, spelled):
    table(shapes, {"a": spelled, "b": "cat", "c": "dog"})
    with pytest.raises(InputError) as error:
        scan_folder(shapes)
    assert repr(spelled) in str(error.value) and "'cat'" in str(error.value)


def test_the_same_from_parquet(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    pd.DataFrame({"path": paths, "label": [{"a": " x", "b": "y", "c": "z"}[path[0]] for path in paths]}).to_parquet(
        shapes / "labels.parquet"
    )
    assert set(scan_folder(shapes).manifest["label"]) == {"x", "y", "z"}
    pd.DataFrame({"path": paths, "label": [{"a": " x", "b": "x", "c": "z"}[path[0]] for path in paths]}).to_parquet(
        shapes / "labels.parquet"
    )
    with pytest.raises(InputError, match="' x' and 'x' differ"):
        scan_folder(shapes)


def test_labels_by_a_pattern_likewise(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for label, name in enumerate(("cat", "dog", "sea\u00a0lion")):
        for number in range(15):
            (folder / f"{name} {number}.png").write_bytes(encode(picture(label, number)))
    pattern = r"^[^\d.]+"
    result = scan_folder(folder, label_pattern=pattern)
    assert set(result.manifest["label"]) == {"cat", "dog", "sea lion"}
    assert set(result.notes["kind"]) == {"label spelling"}
    (folder / "cat99.png").write_bytes(encode(picture(0, 99)))
    with pytest.raises(InputError, match="labels 'cat' and 'cat ' differ only in white space"):
        scan_folder(folder, label_pattern=pattern)


def test_spellings_of_a_group_are_one_group(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    rows = [
        f"{path},{path[0]},p{number % 10}{['', f'{NBSP}', f'{ZERO_WIDTH}'][number % 3]}" for number, path in enumerate(paths)
    ]
    (shapes / "labels.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n", encoding="utf-8")
    result = scan_folder(shapes)
    assert set(result.manifest["group"]) == {f"p{number}" for number in range(10)}
    assert (result.manifest.groupby("group")["split"].nunique() == 1).all()
    assert {kind for _, kind, _ in noted(result)} == {"group spelling"}
    (shapes / "labels.csv").unlink()
    for number, path in enumerate(sorted(shapes.rglob("*.png"))):
        path.rename(path.with_name(f"k{number % 12}{' ' if number % 24 < 12 else NBSP}{path.name}"))
    grouped = scan_folder(shapes, group_pattern=r"k\d+\s").manifest
    assert set(grouped["group"]) == {f"k{number}" for number in range(12)}


SIGNS = st.sampled_from(
    "a \u00e9\u00a0\u200b\u200c\u200d\u00ad\u3000\u0645\u0915\u0600\ufe0f\U0001f469\U0001f3f4\U000e0067\U000e007f\n"
)


@given(st.one_of(st.text(max_size=8), st.text(SIGNS, max_size=8)))
def test_a_clean_name_is_clean(text):
    name = clean(text)
    assert clean(name) == name == name.strip() and fold(name) == fold(text)
    assert [sign for sign in text if sign.isalnum()] == [sign for sign in name if sign.isalnum()]
