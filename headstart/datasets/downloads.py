"""Download an archive once, resume an interrupted download, and unpack regular files only."""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests

from headstart.core.errors import InputError, Unavailable
from headstart.core.files import fsync, remove
from headstart.core.progress import track

CONNECT_SECONDS, READ_SECONDS = 20, 60
ATTEMPTS = 5
CHUNK_BYTES = 1 << 16  # the most that an interrupted download loses


@dataclass(frozen=True)
class Archive:
    """A file to download: its address and its publisher's checksum, as `algorithm:hex`."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Caps:
    """The limits of an archive: its files, their bytes in all, and their bytes per byte of the archive."""

    files: int = 1_000_000
    bytes: int = 100 << 30
    ratio: int = 100


def download(archive: Archive, folder: Path) -> Path:
    """Download an archive to `folder`, unless it exists already.

    A part that an earlier download left (`NAME.part`) is continued if the server allows it.

    Returns:
        The archive's path; its checksum has been checked.

    Raises:
        InputError: there is no network or the server refuses (`Unavailable`), or the checksum is wrong (the part is deleted).
    """
    path = folder / archive.name
    if path.is_file():
        if _checksum(path, archive.checksum) == archive.checksum:
            return path
        raise InputError(f"{path} is damaged: its checksum is not {archive.checksum}", fix="delete it, then run again")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(archive.url, part)
            break
        except requests.RequestException as error:
            broke_off = isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError)
            if attempt == ATTEMPTS or not (broke_off and part.exists() and part.stat().st_size):
                raise Unavailable(
                    f"{archive.url} cannot be downloaded: {error}",
                    wanted=f"a network, or the file at {path}",
                    fix="run again to continue the download, or put the file there, or set data.builtin: digits",
                ) from None
            time.sleep(min(attempt, 3))
    if _checksum(part, archive.checksum) != archive.checksum:
        remove(part)
        raise InputError(f"{archive.url}: the downloaded file does not have the checksum {archive.checksum}", fix="run again")
    fsync(part)
    os.replace(part, path)
    return path


def _continue(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as reply:
        if reply.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the part is complete already; the checksum decides
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        total, what = int(reply.headers.get("Content-Length", 0)), f"downloading {url.rpartition('/')[2]}"
        with part.open("ab" if resumed else "wb") as stream:
            for chunk in track(reply.iter_content(CHUNK_BYTES), what, total, unit="bytes", weigh=len):
                stream.write(chunk)


def _checksum(path: Path, wanted: str) -> str:
    algorithm = wanted.partition(":")[0]
    with path.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def unpack(archive: Path, folder: Path, caps: Caps | None = None) -> int:
    """Unpack a tar archive's regular files into `folder`; refuse links and devices.

    Returns:
        The number of files.

    Raises:
        InputError: the file is no tar archive or damaged, a member is neither file nor folder or leads out of
            `folder`, or there are more files or bytes than `caps` allows. `folder` is deleted then.
    """
    caps = caps or Caps()
    try:
        return _unpack(archive, folder, caps)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        remove(folder)
        faulty = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # such as two members of one name
        if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno not in (None, *faulty)):
            raise
        raise InputError(f"{archive}: not a tar archive, or a damaged one: {error}", fix="delete it, then run again") from None


def _unpack(archive: Path, folder: Path, caps: Caps) -> int:
    files = size = 0
    most = min(caps.bytes, caps.ratio * archive.stat().st_size)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isdir() and ".." not in parts:
                continue
            if not member.isreg() or ".." in parts or member.name.startswith("/"):
                raise InputError(f"{archive}: {member.name!r} is a link or a device, or leads out of the folder")
            files, size = files + 1, size + member.size
            if files > caps.files or size > most:
                raise InputError(f"{archive} holds more than {caps.files:,} files or {most:,} bytes")
            stream = tar.extractfile(member)
            assert stream is not None
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                while data := stream.read(CHUNK_BYTES):
                    out.write(data)
    return files
