"""`python -m flows.link --from`: links, copies in DVC's care, and the source that is never written."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flows.param_edits import set_params
from headstart.core.errors import InputError
from tests.conftest import encode, picture, write_shapes
from tests.forked_workers import forked_workers
from tests.projects import dvc_here, run, run_here


def link_data(project: Path, *arguments: str, code: int = 0) -> str:
    """The stage, or with a folder to link the command for that."""
    with forked_workers():
        return run_here(project, module_of(arguments), *arguments, code=code)


def command(project: Path, *arguments: str, code: int = 0) -> str:
    """The same by the real command."""
    return run(project, sys.executable, "-m", module_of(arguments), *arguments, code=code)


def module_of(arguments: tuple[str, ...]) -> str:
    return "tasks.link_data" if arguments in ((), ("--verify",)) else "flows.link"


def content(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Hash, time and inode of every file below a folder, and the folders themselves."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
            path.lstat().st_mtime_ns,
            path.lstat().st_ino,
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_shapes(tmp_path / "my photos")


def test_a_link_is_made_shown_and_named_and_the_source_not_written(project, photos):
    before = content(photos)
    said = command(project, "--from", str(photos), "--name", "photos")
    link = project / "data/photos"
    assert link.is_symlink() and link.resolve() == photos.resolve()
    assert f"data/photos -> {photos}" in said
    assert "60 files in 3 folders: a (20), b (20), c (20)" in said
    assert "--set data.source=data/photos\n" in said
    set_params(project / "params.yaml", ["data.source=data/photos"])
    command(project)
    assert len(pd.read_parquet(project / "data/manifest.parquet")) == 60
    assert content(photos) == before


def test_the_name_is_the_folders_own_by_default_and_paths_may_be_relative(project, photos):
    link_data(project, "--from", "../my photos")
    assert (project / "data/my photos").resolve() == photos.resolve()
    assert "--set 'data.source=data/my photos'" in link_data(project, "--from", "../my photos")


def test_a_link_elsewhere_is_replaced_only_if_asked_and_never_followed(project, photos, tmp_path):
    other = write_shapes(tmp_path / "other", each=3)
    link_data(project, "--from", str(photos), "--name", "x")
    link_data(project, "--from", str(photos), "--name", "x")  # leads there already
    before = content(photos)
    told = link_data(project, "--from", str(other), "--name", "x", code=2)
    assert "links to" in told and "--relink" in told
    assert (project / "data/x").resolve() == photos.resolve()
    link_data(project, "--from", str(other), "--name", "x", "--relink")
    assert (project / "data/x").resolve() == other.resolve()
    assert content(photos) == before
    photos.rename(tmp_path / "moved")
    (project / "data/x").unlink()
    (project / "data/x").symlink_to(photos)  # a dangling one
    link_data(project, "--from", str(other), "--name", "x", "--relink")
    assert (project / "data/x").resolve() == other.resolve()
    (project / "data/x").unlink()
    (project / "data/x").symlink_to("x")  # one to itself
    link_data(project, "--from", str(other), "--name", "x", "--relink")
    assert (project / "data/x").resolve() == other.resolve()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "/no/such/folder"], "no such folder"),
        (["--from", "{photos}", "--name", "../x"], "wanted: a plain file name"),
        (["--from", "{photos}", "--name", ".."], "wanted: a plain file name"),
        (["--from", "{photos}", "--name", "digits"], "the pipeline writes data/digits itself"),
        (["--from", "{photos}", "--name", "manifest.parquet"], "the pipeline writes"),
        (["--from", "{photos}", "--name", "folder"], "already exists and is no link"),
        (["--from", "."], "it holds this project"),
        (["--from", "data/folder"], "lies in its data/"),
        (["--name", "x"], "arguments are required: --from"),
        (["--from", "{photos}", "--name", "x.dvc"], "wanted: a plain file name"),
        (["--from", "{photos}", "--name", "x" * 201], "up to 200 bytes"),
        (["--from", "data/loop"], "data/loop (a link to loop): no such folder"),
        (["--from", "data/loop", "--name", "x"], "data/loop (a link to loop): no such folder"),
        (["--from", "{photos}/a/000.png"], "a file, not a folder"),
    ],
)
def test_what_cannot_be_linked_is_told(project, photos, arguments, told):
    (project / "data/folder").mkdir()
    (project / "data/folder/x").write_text("mine")
    (project / "data/loop").symlink_to("loop")
    said = link_data(project, *(argument.replace("{photos}", str(photos)) for argument in arguments), code=2)
    assert told in said and "Traceback" not in said
    assert (project / "data/folder/x").read_text() == "mine"
    assert {path.name for path in (project / "data").iterdir()} == {"folder", "loop", "shapes"}


def test_a_folder_that_dvc_would_hang_on_is_not_linked(project, photos):
    os.mkfifo(photos / "a" / "pipe")
    assert "a/pipe: not a regular file" in link_data(project, "--from", str(photos), code=2)


def test_fetch_data_does_not_write_through_a_link_at_its_out(project, photos):
    (project / "data/digits").symlink_to(photos)
    before = content(photos)
    assert "symbolic link" in run(project, sys.executable, "-m", "tasks.fetch_data", code=2)
    assert content(photos) == before


def test_a_read_only_mount_is_enough(project, photos):
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", photos, photos], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (photos / "x").touch()
        link_data(project, "--from", str(photos), "--name", "photos")
        set_params(project / "params.yaml", ["data.source=data/photos"])
        link_data(project)
        link_data(project, "--verify")
        assert "up to date" not in run(project, "dvc", "status", "link_data")  # it runs there too, and hangs on nothing
    finally:
        subprocess.run(["umount", photos], check=True)
    assert len(pd.read_parquet(project / "data/manifest.parquet")) == 60


def test_a_copy_in_dvc_is_pushed_and_pulled(project, photos, tmp_path):
    before = content(photos)
    said = link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    assert content(photos) == before
    assert "in DVC's care" in said and "git add data/photos.dvc" in said
    copy = project / "data/photos"
    assert copy.is_dir() and not copy.is_symlink()
    assert [path.name for path in sorted(copy.iterdir())] == ["a", "b", "c"]
    set_params(project / "params.yaml", ["data.source=data/photos"])
    link_data(project)
    manifest = (project / "data/manifest.parquet").read_bytes()
    dvc_here(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    dvc_here(project, "push", "data/photos")
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "copy"]):
        run(project, "git", *command)
    shutil.rmtree(photos)
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    assert "dvc pull photos.dvc" in link_data(clone, code=2)
    run(clone, "dvc", "pull", "data/photos")
    link_data(clone)
    assert (clone / "data/manifest.parquet").read_bytes() == manifest


def test_a_copy_in_dvc_takes_the_place_of_nothing_but_a_copy(project, photos, tmp_path):
    (project / "data/photos").symlink_to(photos)
    said = link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc", code=2)
    assert "is no copy in DVC's care" in said
    (project / "data/photos").unlink()
    link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    (photos / "a" / "new.png").write_bytes(encode(picture(0, 999)))
    link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    assert (project / "data/photos/a/new.png").is_file()


def test_a_copy_in_dvc_that_somebody_changed_is_kept(project, photos):
    link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    (project / "data/photos/a/mine.png").write_bytes(encode(picture(0, 998)))
    said = link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc", code=2)
    assert "was changed since it was copied into DVC" in said
    assert (project / "data/photos/a/mine.png").is_file()


def test_no_link_takes_the_place_of_a_copy_into_which_dvc_would_write(project, photos, tmp_path):
    link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    shutil.rmtree(project / "data/photos")  # as in a fresh clone
    other = write_shapes(tmp_path / "other", each=3)
    for more in ([], ["--relink"]):
        assert "data/photos is a copy in DVC's care" in link_data(
            project, "--from", str(other), "--name", "photos", *more, code=2
        )
    dvc_here(project, "checkout", "data/photos.dvc")
    assert len(list(other.rglob("*.png"))) == 9
    assert (project / "data/photos").is_dir() and not (project / "data/photos").is_symlink()


def test_links_into_a_cache_elsewhere_are_dvcs_own(project, photos, tmp_path):
    dvc_here(project, "config", "cache.dir", str(tmp_path / "cache"))
    dvc_here(project, "config", "cache.type", "symlink")
    link_data(project, "--from", str(photos), "--name", "photos", "--copy-into-dvc")
    assert (project / "data/photos/a/000.png").is_symlink()
    set_params(project / "params.yaml", ["data.source=data/photos"])
    link_data(project)
    assert len(pd.read_parquet(project / "data/manifest.parquet")) == 60


def test_verify_refuses_what_changed_since_the_manifest(project):
    link_data(project)
    before = (project / "data/manifest.parquet").read_bytes()
    (project / "data/shapes/a/000.png").write_bytes(encode(picture(0, 999)))
    said = link_data(project, "--verify", code=2)
    assert "a/000.png" in said and "--force link_data" in said
    assert (project / "data/manifest.parquet").read_bytes() == before
    link_data(project)
    link_data(project, "--verify")


def test_an_edit_in_place_that_keeps_the_times_stops_the_stage(project, monkeypatch):
    from headstart.core.graph import load_graph
    from headstart.core.params import load_params
    from headstart.core.stages import run_stage
    from headstart.ingest import scan as module
    from tasks.link_data import link_data as stage

    real = module.examine_all

    def edit_then(paths, *arguments, **options):
        yield from real(paths, *arguments, **options)
        path = Path(paths[3])
        status, data = path.stat(), bytearray(path.read_bytes())
        data[-20] ^= 1
        with path.open("r+b") as stream:
            stream.write(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(module, "examine_all", edit_then)
    params = load_params(project / "params.yaml")
    graph = load_graph(project, params)
    with pytest.raises(InputError, match="an input changed while it ran"):
        run_stage(graph["link_data"], stage, project, params)
    assert not (project / "data/manifest.parquet").exists()


def test_verify_reads_every_file(project):
    link_data(project)
    manifest = (project / "data/manifest.parquet").read_bytes()
    assert "0 files read, 60 known from an earlier scan" in link_data(project)
    assert "known from an earlier scan" not in link_data(project, "--verify")
    assert (project / "data/manifest.parquet").read_bytes() == manifest
