"""Sources, manifest, splits: invariants 6 and 7 of the design."""

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.ingest.splits import EXCLUDED, unusual_shares
from headstart.ingest.summary import pictures, summarise
from headstart.ingest.tree import preflight
from headstart.manifest import read_manifest, write_csv, write_manifest
from headstart.seeds import share_and_fold
from tests.conftest import encode, picture, scan_folder, write_shapes


def splits(frame: pd.DataFrame) -> dict[str, str]:
    return dict(zip(frame["key"], frame["split"], strict=True))


def test_counts_add_up_and_labels_are_the_folders(shapes):
    (shapes / "a" / "notes.txt").write_bytes(b"text")
    (shapes / "Thumbs.db").write_bytes(b"x")
    (shapes / "README").write_bytes(b"x")
    (shapes / "c" / ".DS_Store").write_bytes(b"x")
    result = scan_folder(shapes)
    files = sum(1 for path in shapes.rglob("*") if path.is_file())
    report = summarise(result)
    assert (report["files"], report["images"], report["quarantined"], report["ignored"]) == (files, 60, 1, 3)
    assert report["ignored_by_extension"] == {".txt": 1}
    assert list(result.quarantine["path"]) == ["README"]
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
    shares = np.array([share_and_fold(0, f"{i:064x}", 1)[0] for i in range(4000)])
    assert shares.min() >= 0 and shares.max() < 1
    assert abs((shares < 0.2).mean() - 0.2) < 0.02
    assert share_and_fold(0, "k", 1)[0] != share_and_fold(1, "k", 1)[0]


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
    assert Counter(frame["split"])[EXCLUDED] == 6
    used = frame[frame["split"] != EXCLUDED]
    assert (used.groupby("key")["split"].nunique() == 1).all()
    assert (frame.loc[frame["path"].str.startswith("test/"), "split"] == "test").all()


def test_labels_csv_with_split_and_more_columns(shapes):
    rows = ["path,label,split,camera"]
    for path in sorted(shapes.rglob("*.png")):
        number = int(path.stem)
        split = "test" if number < 3 else "valid" if number < 6 else ""
        rows.append(f"{path.relative_to(shapes).as_posix()},kind-{path.parent.name},{split},{number % 2}")
    (shapes / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    frame = scan_folder(shapes).manifest
    assert set(frame["label"]) == {"kind-a", "kind-b", "kind-c"}
    assert dict(Counter(frame["split"])) == {"test": 9, "valid": 9, "train": 42}
    assert set(frame["camera"]) == {"0", "1"}


def test_a_wrong_path_an_empty_folder_and_a_file(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        preflight(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        preflight(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        preflight(tmp_path / "file")


def test_the_manifest_round_trips_and_equal_frames_give_equal_bytes(shapes, tmp_path):
    frame = scan_folder(shapes).manifest
    write_manifest(tmp_path / "1.parquet", frame)
    write_manifest(tmp_path / "2.parquet", frame.sample(frac=1, random_state=0))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "1.parquet"), frame)


def test_a_damaged_manifest_is_refused(shapes, tmp_path):
    write_manifest(tmp_path / "m.parquet", scan_folder(shapes).manifest)
    (tmp_path / "m.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:-50])
    with pytest.raises(InputError, match="damaged"):
        read_manifest(tmp_path / "m.parquet")


def test_a_cell_of_the_quarantine_list_starts_no_formula(tmp_path):
    write_csv(tmp_path / "q.csv", pd.DataFrame({"path": ["=cmd()", "a.png"], "reason": ["+x", "fine"]}))
    assert (tmp_path / "q.csv").read_text().splitlines()[1] == '"\'=cmd()","\'+x"'


def test_kaggles_flat_names_by_a_pattern(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for label, name in ((0, "cat"), (1, "dog")):
        for number in range(30):
            (folder / f"{name}.{number}.png").write_bytes(encode(picture(label, number)))
    (folder / "sampleSubmission.csv").write_text("id,label")
    (folder / "wolf.png").write_bytes(encode(picture(2, 99)))
    (folder / ".DS_Store").touch()
    for pattern in (r"^(cat|dog)\.", "^[a-z]{3}(?=[.])"):
        result = scan_folder(folder, label_pattern=pattern)
        assert dict(Counter(result.manifest["label"])) == {"cat": 30, "dog": 30}
        assert list(result.quarantine["path"]) == ["wolf.png"]
        assert "data.label_pattern" in result.quarantine["reason"][0]
        assert summarise(result)["ignored_by_extension"] == {".csv": 1}


def test_a_pattern_and_split_folders(tmp_path):
    for split, numbers in (("train", range(30)), ("val", range(30, 40))):
        (tmp_path / "s" / split).mkdir(parents=True)
        for label, name in ((0, "cat"), (1, "dog")):
            for number in numbers:
                (tmp_path / "s" / split / f"{name}.{number}.png").write_bytes(encode(picture(label, number)))
    frame = scan_folder(tmp_path / "s", label_pattern="^(cat|dog)").manifest
    assert (frame.loc[frame["path"].str.startswith("val/"), "split"] == "valid").all()
    assert set(frame.loc[frame["path"].str.startswith("train/"), "split"]) == {"train", "test"}


def test_other_names_of_split_folders(tmp_path):
    for name in ("train", "validation", "test"):
        write_shapes(tmp_path / "s" / name, each=4)
    for number, path in enumerate(sorted((tmp_path / "s").rglob("*.png"))):
        path.write_bytes(encode(picture(number % 3, 100 + number)))
    (tmp_path / "s" / "extra").mkdir()
    (tmp_path / "s" / "extra" / "x.png").write_bytes(encode(picture(0, 1)))
    result = scan_folder(tmp_path / "s")
    assert dict(Counter(result.manifest["split"])) == {"train": 12, "valid": 12, "test": 12}
    assert result.notes.to_numpy().tolist() == [["extra/x.png", "ignored", "outside test, train, validation"]]
    write_shapes(tmp_path / "s" / "val", each=4)
    with pytest.raises(InputError, match="both val and validation"):
        scan_folder(tmp_path / "s")


def test_a_group_is_never_split_apart(tmp_path):
    for patient in range(30):
        for number in range(4):
            path = tmp_path / "s" / "ab"[number % 2] / f"patient{patient:02}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(number % 2, 10 * patient + number)))
    (tmp_path / "s" / "a" / "stranger.png").write_bytes(encode(picture(0, 999)))
    result = scan_folder(tmp_path / "s", group_pattern=r"patient\d+")
    frame = result.manifest[result.manifest["group"] != ""]
    assert set(frame["group"]) == {f"patient{patient:02}" for patient in range(30)}
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    assert set(frame["split"]) == {"train", "valid", "test"}
    assert result.notes.to_numpy()[:, :2].tolist() == [["a/stranger.png", "no group"]]
    assert summarise(result)["groups"] == 30
    alone = scan_folder(tmp_path / "s").manifest
    assert alone.groupby(alone["path"].str.slice(2, 11))["split"].nunique().max() > 1


def test_a_group_column_of_the_labels_file(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    rows = [f"{path},{path[0]},camera{number % 7}" for number, path in enumerate(paths)]
    (shapes / "labels.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    frame = scan_folder(shapes).manifest
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    with pytest.raises(InputError, match="keep one"):
        scan_folder(shapes, group_pattern="camera")


def test_a_group_that_the_source_itself_splits_is_held_out_of_training(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    own = {0: "test", 1: "test", 2: "valid", 3: "valid"}
    rows = [f"{path},{path[0]},patient{number % 10},{own.get(number, '')}" for number, path in enumerate(paths)]
    (shapes / "labels.csv").write_text("path,label,group,split\n" + "\n".join(rows) + "\n")
    result = scan_folder(shapes)
    frame = result.manifest[result.manifest["split"] != "excluded"]
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    assert frame.set_index("path").loc[paths[:4], "split"].tolist() == ["test", "test", "valid", "valid"]
    report = summarise(result)
    assert report["splits"]["excluded"] == report["excluded_groups"] == 20
    assert set(result.notes.loc[result.notes["kind"] == "group", "path"]) == {
        path for number, path in enumerate(paths) if number % 10 < 4 and number > 3
    }


def test_a_fold_of_a_source_with_its_own_validation_images_is_refused(shapes):
    for name in ("train", "valid"):
        write_shapes(shapes.parent / "s" / name)
    with pytest.raises(InputError, match="has validation images of its own"):
        scan_folder(shapes.parent / "s", fold=1, on_label_conflict="quarantine")


def test_a_training_folder_alone_is_split(tmp_path):
    write_shapes(tmp_path / "s" / "Train")
    frame = scan_folder(tmp_path / "s").manifest
    assert set(frame["label"]) == {"a", "b", "c"}
    assert set(frame["split"]) == {"train", "valid", "test"}


def test_categories_and_whole_numbers_with_gaps_come_back(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    columns = {
        "path": paths,
        "label": pa.array(["x", "y"] * 30).dictionary_encode(),
        "site": pa.array(["north", None] * 30).dictionary_encode(),
        "number": pa.array([2**60 + 1, None] * 30),
    }
    pq.write_table(pa.table(columns), shapes / "labels.parquet")
    write_manifest(shapes.parent / "m.parquet", scan_folder(shapes).manifest)
    frame = read_manifest(shapes.parent / "m.parquet")
    assert frame["label"].tolist() == ["x", "y"] * 30
    assert frame["site"].fillna("").tolist() == ["north", ""] * 30
    assert frame["number"].tolist() == [2**60 + 1, None] * 30


def test_labels_parquet_keeps_the_types_of_further_columns(shapes):
    paths = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    table = pd.DataFrame(
        {
            "path": paths,
            "label": [number % 2 for number in range(60)],
            "age": np.arange(60) / 7,
            "taken": pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(60), "D"),
            "smoker": [number % 3 == 0 for number in range(60)],
            "site": ["north", None] * 30,
        }
    ).sample(frac=1, random_state=0)
    table.to_parquet(shapes / "labels.parquet")
    frame = scan_folder(shapes).manifest.set_index("path")
    table = table.set_index("path").loc[frame.index]
    assert set(frame["label"]) == {"0", "1"}
    assert (frame["label"] == table["label"].astype(str)).all()
    for name in ("age", "taken", "smoker"):
        assert frame[name].dtype == table[name].dtype
        assert (frame[name] == table[name]).all()
    assert frame["site"].isna().sum() == 30
    write_manifest(shapes.parent / "m.parquet", frame.reset_index())
    again = read_manifest(shapes.parent / "m.parquet")
    pd.testing.assert_series_equal(again.set_index("path")["taken"], frame["taken"])


def test_folds_partition_what_is_not_test_and_never_move(shapes):
    frame = scan_folder(shapes).manifest
    kept = frame[frame["split"] != "test"]
    assert (frame.loc[frame["split"] == "test", "fold"] == -1).all()
    assert set(kept["fold"]) <= set(range(5))
    assert kept["fold"].to_numpy().tolist() == [share_and_fold(0, key, 5)[1] for key in kept["key"]]
    tests = set()
    seen: Counter = Counter()
    for fold in range(5):
        other = scan_folder(shapes, fold=fold).manifest
        tests.add(tuple(other.loc[other["split"] == "test", "path"]))
        valid = other.loc[other["split"] == "valid"]
        assert (valid["fold"] == fold).all()
        seen.update(valid["path"])
    assert len(tests) == 1, "the test split is the same in every fold"
    assert seen == Counter(list(kept["path"])), "each other image validates once"


def test_folds_are_even():
    counts = Counter(share_and_fold(3, f"{number:064x}", 5)[1] for number in range(10_000))
    assert set(counts) == set(range(5))
    assert max(abs(count - 2_000) for count in counts.values()) < 160  # four standard deviations


def test_class_shares_are_within_sampling_tolerance_and_odd_ones_are_told():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "label": np.repeat(["a", "b", "c", "d"], [2000, 500, 100, 2000]),
            "split": rng.choice(["train", "valid", "test"], 4600, p=[0.7, 0.1, 0.2]),
        }
    )
    assert unusual_shares(frame) == []
    frame.loc[frame.index[:120], "split"] = "valid"
    (found,) = [row for row in unusual_shares(frame) if (row["class"], row["split"]) == ("a", "valid")]
    assert found["images"] == int(((frame["label"] == "a") & (frame["split"] == "valid")).sum()) > found["expected"]


def test_the_summary_and_its_pictures_are_the_same_each_time(shapes):
    (shapes / "$a_{b}$ é中\n").mkdir()
    for number in range(6):
        (shapes / "$a_{b}$ é中\n" / f"{number}.png").write_bytes(encode(picture(1, 600 + number)))
    first, second = scan_folder(shapes), scan_folder(shapes)
    assert summarise(first) == summarise(second)
    drawn = pictures(first, shapes, 10_000)
    assert drawn == pictures(second, shapes, 10_000)
    assert set(drawn) == {"labels.png", "sizes.png", "samples.png"}
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused_or_changes_nothing(shapes, tmp_path):
    frame = scan_folder(shapes).manifest
    path = tmp_path / "m.parquet"
    write_manifest(path, frame)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 300):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            pd.testing.assert_frame_equal(read_manifest(path), frame)
        except InputError:
            refused += 1
    assert refused > 200
