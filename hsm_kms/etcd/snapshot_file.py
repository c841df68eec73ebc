"""Find out what a file given as a snapshot is, and decompress it if need be."""

from __future__ import annotations

import gzip
import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from hsm_kms.etcd.source import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable

_MEMBER: Final = Path("member", "snap", "db")
_SAVED_HINT: Final = "give a file that `etcdctl snapshot save` wrote"
_BOLT_AT, _BOLT = 16, b"\xed\xda\x0c\xed"  # in the first page of a database of bbolt
_TAR_AT: Final = 257
_HEAD_BYTES: Final = 512
_OTHERS: Final = {
    b"BZh": ("is compressed with bzip2", "decompress it first"),
    b"\xfd7zXZ\0": ("is compressed with xz", "decompress it first"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "decompress it first"),
    b"SQLite format 3\0": (
        "is a database of SQLite, as kine of k3s has it",
        "scan the running kine instead: --endpoints unix://PATH of its kine.sock",
    ),
}


def prepared(path: Path, folder: Path) -> Path:
    """Return a snapshot that is not compressed.

    k3s and RKE2 can save snapshots as zip files, and many people use gzip.

    Args:
        path: The file that was given.
        folder: A private directory, for what is decompressed.

    Raises:
        EtcdError: The file cannot be read, or is something else than a snapshot.
    """
    try:
        return _prepared(path, folder)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile):
        raise EtcdError(f"{path} is damaged: it cannot be decompressed") from None
    except OSError as error:
        raise EtcdError(f"{path} cannot be read: {error.strerror}") from None


def require_file(path: Path) -> None:
    """Refuse what is no file, before anything else is looked for.

    Raises:
        EtcdError: The file does not exist, cannot be reached, or is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise EtcdError(f"the file {path} does not exist") from None
    except OSError as error:
        raise EtcdError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise EtcdError(f"{path} is a directory", hint=_hint_for(path))
    if not stat.S_ISREG(mode):
        raise EtcdError(f"{path} is not a regular file")


def _prepared(path: Path, folder: Path) -> Path:
    opened = _opener(_head(path.open("rb")))
    if opened is not None:
        target = folder / "snapshot.db"
        with opened(path) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    else:
        target = path
    head = _head(target.open("rb"))
    for magic, (cause, hint) in _OTHERS.items():
        if head.startswith(magic):
            raise EtcdError(f"{path} {cause}", hint=hint)
    if head[_TAR_AT:].startswith(b"ustar"):
        raise EtcdError(f"{path} is a tar archive", hint="extract the snapshot first")
    if head[_BOLT_AT:].startswith(_BOLT):
        return target
    raise EtcdError(f"{path} is not a database of etcd", hint=_SAVED_HINT)


def _head(file: IO[bytes]) -> bytes:
    with file:
        return file.read(_HEAD_BYTES)


def _opener(head: bytes) -> Callable[[Path], IO[bytes] | gzip.GzipFile] | None:
    if head.startswith(b"PK\3\4"):
        return _open_zip
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile
    return None


def _open_zip(path: Path) -> IO[bytes]:
    """Open the only file in a zip file.

    Raises:
        EtcdError: The zip file has no or several files, or is encrypted.
    """
    archive = zipfile.ZipFile(path)
    names = [each.filename for each in archive.infolist() if not each.is_dir()]
    if len(names) != 1:
        raise EtcdError(
            f"{path} is a zip file with {len(names)} files",
            hint="extract the snapshot first",
        )
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError):
        raise EtcdError(
            f"{path} is a zip file that is encrypted or of an unknown kind",
            hint="extract the snapshot first",
        ) from None


def _hint_for(directory: Path) -> str:
    database = directory / _MEMBER
    if database.exists():
        return f"give a copy of {database} and --skip-hash-check"
    return _SAVED_HINT
