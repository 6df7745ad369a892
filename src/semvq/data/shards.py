"""Tar files of images: members are indexed once and read in place by their offset.

A WebDataset shard is such a tar. Its images `<key>.<ext>` get their class from `<key>.cls` where
there is one, else from their folder. Nothing is ever unpacked, and a tar must be whole.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from semvq.data.pixels import EXTENSIONS

SPLITS = {"train", "training", "val", "valid", "validation", "test"}
MAX_NAME = 1024  # bytes; all names are held in one array as wide as the longest
_MAX_CLASS = 256  # bytes of a `.cls` file
_TAIL = 1 << 20  # bytes looked at after the last member
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED_NAMES = ("*.tar.*", "*.tgz", "*.tbz2", "*.txz", "*.zip")

# name "<class>/<file>" as bytes, size in bytes, number of the tar, offset in it
Row = tuple[bytes, int, int, int]


def find_tars(path: Path) -> list[Path]:
    """The tar files that `path` means: itself, those in the folder, or those of the pattern."""
    if path.suffix in (".npy", ".npz"):
        raise ValueError(
            f"{path}: expected a folder or a tar file of images, found arrays; write them as image "
            "files (samples to evaluate may be a .npz: uint8 (N, H, W, 3) as 'arr_0')"
        )
    if path.is_file():
        return [path]
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        words = {w for tar in tars for w in re.split(r"[^a-z]+", tar.stem.lower())} & SPLITS
        if len(words) > 1:
            raise ValueError(
                f"{path}: expected the tar files of one split, found {' and '.join(sorted(words))};"
                f" name one, such as '{path}/*train*.tar'"
            )
        return tars
    return sorted(path.parent.glob(path.name)) if set(path.name) & set("*?[") else []


def tar_rows(tar: Path, number: int) -> tuple[list[Row], bool]:
    """The images of a tar, and whether `.cls` files gave their classes.

    ValueError, with the tar's name, if it is compressed, cut or damaged, or has an image that
    is a link, lies outside of it, or lacks a `.cls` file where others have one.
    """
    rows: list[Row] = []
    classes: dict[str, bytes] = {}
    for member, content in _members(tar):
        name = _name(tar, member)
        if content is not None:
            classes[_key(name)] = _class(tar, name, content)
        elif member.isreg():
            rows.append((os.fsencode(name), member.size, number, member.offset_data))
        else:
            raise ValueError(
                f"{tar}: expected an image, found the link '{name}'; make the tar anew with "
                "--dereference --hard-dereference"
            )
    return [_with_class(tar, row, classes) for row in rows] if classes else rows, bool(classes)


def is_image(name: str) -> bool:
    """Whether a file is one of ours by its name; hidden ones are not."""
    file = name.rpartition("/")[2].lower()
    return file.endswith(EXTENSIONS) and not file.startswith(".")


def _members(tar: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Images and links to such, and `.cls` files with their content; nothing else."""
    size = os.path.getsize(tar)
    try:
        with tarfile.open(tar, "r:") as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                left = size - member.offset_data
                if not 0 <= member.size <= left:
                    raise tarfile.ReadError(f"a member of {member.size} bytes, {left} are left")
                if member.isreg() and member.name.endswith(".cls"):
                    file = archive.extractfile(member)
                    yield member, file.read(_MAX_CLASS + 1) if file else b""
                elif is_image(member.name) and (member.isreg() or member.issym() or member.islnk()):
                    yield member, None
            _check_end(archive)
    except OSError:
        raise
    # tarfile raises its own errors, but RecursionError, MemoryError and more on a hostile file
    except Exception as error:
        raise ValueError(
            f"{tar}: expected a whole, uncompressed tar file, {_found(tar, error)}"
        ) from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Where tarfile stops there must be the end mark, or it skipped what it could not read."""
    at = archive.offset
    if at == 0:
        raise tarfile.ReadError("an empty one; remove it or make it anew")
    assert archive.fileobj
    archive.fileobj.seek(at)
    tail = archive.fileobj.read(_TAIL)
    if not tail:
        raise tarfile.ReadError(f"no end mark after byte {at}: it was cut there")
    if any(tail[: tarfile.BLOCKSIZE]):
        raise tarfile.ReadError(f"a damaged header at byte {at}")
    if any(tail):
        raise tarfile.ReadError(f"more data behind the end mark at byte {at}: several tars in one")


def _found(tar: Path, error: Exception) -> str:
    with open(tar, "rb") as file:
        head = file.read(8)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            return f"found one compressed by {kind}; decompress it once"
    return f"found {error or type(error).__name__}"


def _name(tar: Path, member: tarfile.TarInfo) -> str:
    name = os.path.normpath(member.name).replace(os.sep, "/")
    if name.startswith(("/", "../")):
        raise ValueError(f"{tar}: expected names inside the archive, found '{name[:100]}'")
    if len(os.fsencode(name)) > MAX_NAME:
        raise ValueError(f"{tar}: expected names of at most {MAX_NAME} bytes, found '{name[:60]}…'")
    return name


def _key(name: str) -> str:
    """What the files of one WebDataset sample share: the path up to the file's first dot."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _class(tar: Path, name: str, content: bytes) -> bytes:
    found = content.strip()
    # nothing, `.` and `..`, or what no folder is called
    if len(content) > _MAX_CLASS or re.search(rb"^\.{0,2}$|[/\x00-\x1f\x7f]", found):
        raise ValueError(f"{tar}: {name}: expected a class's number or name, found {found[:40]!r}")
    return found


def _with_class(tar: Path, row: Row, classes: dict[str, bytes]) -> Row:
    name = os.fsdecode(row[0])
    if (found := classes.get(_key(name))) is None:
        raise ValueError(
            f"{tar}: expected a .cls file beside every image or none, found none for '{name}'"
        )
    return found + b"/" + row[0], *row[1:]
