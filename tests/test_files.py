import pytest

from headstart.core import files


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    target = tmp_path / "x.bin"
    files.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_swapped_whole(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
    for i in range(5):
        (tmp_path / "target" / f"{i}").write_text("old")
    for i in range(3):
        (tmp_path / "new" / f"{i}").write_text("new")
    files.swap_in(tmp_path / "new", tmp_path / "target", tmp_path / "trash")
    assert {p.name: p.read_text() for p in (tmp_path / "target").iterdir()} == {"0": "new", "1": "new", "2": "new"}


def test_swapping_in_replaces_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "target").symlink_to(tmp_path / "precious")
    (tmp_path / "new").write_text("new")
    files.swap_in(tmp_path / "new", tmp_path / "target", tmp_path / "trash")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "target").read_text() == "new"


def test_json_is_canonical_and_refuses_nan():
    assert files.canonical_json({"b": 1, "a": 2}) == files.canonical_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json({"a": float("nan")})
