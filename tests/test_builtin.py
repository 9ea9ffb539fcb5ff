import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from headstart.core.errors import InputError
from headstart.datasets import downloads
from headstart.datasets.builtin import write_digits, write_oxford_pets
from headstart.datasets.downloads import Archive, Caps, download, unpack
from tests.conftest import encode, picture


def test_digits_are_scikit_learns(tmp_path):
    assert write_digits(tmp_path / "d") == 1797
    digits = load_digits()
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == list("0123456789")
    for number in (0, 777, 1796):
        pixels = np.asarray(Image.open(tmp_path / "d" / str(digits.target[number]) / f"{number:04}.png"))
        assert np.array_equal(np.round(pixels / 255 * 16), digits.images[number])


class Site:
    """A web server on loopback that can cut replies short, refuse ranges, and counts what it sent."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_at: list[int] = []  # replies are cut off after so many bytes, one entry a reply
        self.ranges = True
        self.asked: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = site.files.get(self.path.strip("/"))
                wanted = self.headers.get("Range")
                site.asked.append(wanted)
                if data is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
                if start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: site.cut_at.pop(0) if site.cut_at else None])

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def archive(self, name: str, data: bytes) -> Archive:
        self.files[name] = data
        url = f"http://127.0.0.1:{self.server.server_port}/{name}"
        return Archive(url, f"sha256:{hashlib.sha256(data).hexdigest()}")


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    one = Site()
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.server.shutdown()
    one.server.server_close()
    thread.join()


DATA = np.random.default_rng(0).bytes(300_000)


def test_a_download_cut_off_is_continued_where_it_stopped(site, tmp_path):
    archive = site.archive("x.bin", DATA)
    site.cut_at = [100_000, 70_000]
    assert download(archive, tmp_path).read_bytes() == DATA
    assert site.asked == [None, "bytes=65536-", "bytes=131072-"]  # whole chunks are kept
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]
    download(archive, tmp_path)
    assert len(site.asked) == 3, "what is there is not downloaded again"


def test_a_part_of_an_earlier_process_is_continued(site, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(DATA[:70_000])
    assert download(site.archive("x.bin", DATA), tmp_path).read_bytes() == DATA
    assert site.asked == ["bytes=70000-"]


def test_a_server_without_ranges_begins_again(site, tmp_path):
    site.ranges = False
    (tmp_path / "x.bin.part").write_bytes(b"something else")
    assert download(site.archive("x.bin", DATA), tmp_path).read_bytes() == DATA


def test_a_wrong_checksum_is_refused_and_the_next_try_is_clean(site, tmp_path):
    archive = site.archive("x.bin", DATA)
    site.files["x.bin"] = DATA[:-1] + b"!"
    with pytest.raises(InputError, match="does not have the checksum"):
        download(archive, tmp_path)
    assert not list(tmp_path.iterdir())
    site.files["x.bin"] = DATA
    path = download(archive, tmp_path)
    path.write_bytes(b"damaged on disk")
    with pytest.raises(InputError, match="its checksum is not"):
        download(archive, tmp_path)


def test_a_refusal_and_a_connection_that_never_holds_are_told(site, tmp_path):
    archive = site.archive("x.bin", DATA)
    with pytest.raises(InputError, match="404"):
        download(Archive(archive.url + "y", archive.checksum), tmp_path)
    site.cut_at = [70_000] * 10
    site.ranges = False
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        download(archive, tmp_path)
    assert "data.builtin: digits" in str(error.value)
    assert (tmp_path / "x.bin.part").exists(), "kept for the next try"


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(kind: bytes, name: str = "x", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        {"x": member(tarfile.SYMTYPE)},
        {"x": member(tarfile.LNKTYPE, link="a/1.jpg")},
        {"x": member(tarfile.CHRTYPE)},
        {"x": member(tarfile.FIFOTYPE)},
        {"../x": b"out"},
        {"/x": b"out"},
        {"a/../../x": b"out"},
    ],
)
def test_links_devices_and_ways_out_of_the_folder_are_refused(tmp_path, bad):
    path = tar(tmp_path / "x.tar.gz", {"a/1.jpg": b"1"} | bad)
    with pytest.raises(InputError, match="a link or a device, or leads out"):
        unpack(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["x.tar.gz"]


@pytest.mark.parametrize("bad", [{"a": b"a file, not a folder"}, {"a/b": b"1", "a/b/c": b"2"}, {"x" * 300: b"1"}])
def test_members_in_each_others_way_are_refused(tmp_path, bad):
    path = tar(tmp_path / "x.tar.gz", {"a/1.jpg": b"1"} | bad)
    with pytest.raises(InputError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_caps_on_count_bytes_and_ratio(tmp_path):
    path = tar(tmp_path / "x.tar.gz", {f"a/{i}": bytes(10_000) for i in range(50)})
    assert unpack(path, tmp_path / "fine", Caps(ratio=10_000)) == 50
    for caps in (Caps(files=49, ratio=10_000), Caps(bytes=499_999, ratio=10_000), Caps(ratio=100)):
        with pytest.raises(InputError, match="more than"):
            unpack(path, tmp_path / "out", caps)
        assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_refused(tmp_path):
    path = tar(tmp_path / "x.tar.gz", {"a": DATA})
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(InputError, match="damaged"):
        unpack(path, tmp_path / "out")
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="damaged"):
        unpack(path, tmp_path / "out")


def pets_archives(site: Site, count: int) -> list[Archive]:
    """The two Oxford-IIIT Pet archives, with so many pictures, two of five of them to test."""
    images, lines = {}, {"trainval": ["# a comment"], "test": []}
    for i in range(count):
        breed, kind = (("Abyssinian", 1), ("great_pyrenees", 2))[i % 2]
        images[f"images/{breed}_{i}.jpg"] = encode(picture(kind, i), "JPEG")
        lines["test" if i >= 0.6 * count else "trainval"].append(f"{breed}_{i} {1 + i % 2} {kind} 1")
    notes = {f"annotations/{split}.txt": ("\n".join(rows) + "\n").encode() for split, rows in lines.items()}
    archives = []
    for name, members in (("images.tar.gz", images), ("annotations.tar.gz", notes)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, data in members.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        archives.append(site.archive(name, buffer.getvalue()))
    return archives


@pytest.fixture
def pets(site) -> list[Archive]:
    return pets_archives(site, 10)


def test_oxford_pets_as_cats_and_dogs_and_as_breeds(pets, tmp_path):
    def found(folder: Path) -> set[str]:
        return {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}

    assert write_oxford_pets(tmp_path / "out/pets", tmp_path / "downloads", by_breed=False, archives=pets) == 10
    assert found(tmp_path / "out/pets") == {"train/Cat", "train/Dog", "test/Cat", "test/Dog"}
    write_oxford_pets(tmp_path / "out/breeds", tmp_path / "downloads", by_breed=True, archives=pets)
    breeds = {"train/Abyssinian", "train/Great_Pyrenees", "test/Abyssinian", "test/Great_Pyrenees"}
    assert found(tmp_path / "out/breeds") == breeds
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pets", "breeds"}


def test_oxford_pets_without_network(tmp_path, monkeypatch):
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        write_oxford_pets(tmp_path / "pets", tmp_path / "downloads", by_breed=False)
    assert "data.builtin: digits" in str(error.value)
