"""Index of a set of images: a folder, a folder of class folders, a tar file, or several.

Tar members `<class>/<file>` are read in place by their offset; see `shards`.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from semvq.data.order import spread
from semvq.data.pixels import EXTENSIONS, BadImageError, decode
from semvq.data.shards import COMPRESSED_NAMES, SPLITS, Row, find_tars, is_image, tar_rows

CACHE_BYTES = 256_000_000  # a set whose decoded images fit is decoded once per process


class ImageSet:
    """Images by number, in the order of their names `<class>/<file>`.

    `classes` are the sorted class names, empty where images lie in no class folder; `labels`
    (int64, one per image) count in them. Use `ImageSet.open`.
    """

    def __init__(
        self, root: Path, tars: Sequence[Path], rows: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        self.root, self.tars, self.classes = root, tuple(tars), classes
        self._rows = rows
        self._cache: dict[int, np.ndarray] = {}
        number = {name.encode("utf-8", "surrogateescape"): i for i, name in enumerate(classes)}
        folders = [name.partition(b"/")[0] for name in rows["name"].tolist()]
        unknown = sorted(set(folders) - set(number)) if classes else []
        if unknown:
            raise ValueError(
                f"{root}: expected classes among {', '.join(map(repr, classes[:10]))} "
                f"({len(classes)} in all), found class {os.fsdecode(unknown[0])!r}"
            )
        self.labels = np.array([number[f] if classes else 0 for f in folders], np.int64)

    @classmethod
    def open(cls, path: str | Path, classes: tuple[str, ...] | None = None) -> "ImageSet":
        """Index the images at `path`; its last part may be a pattern such as `train-*.tar`.

        `classes` None takes them from the names. Raises ValueError when there are no images, when
        training and held-out parts lie side by side, or on a class that is not among `classes`.
        """
        path = Path(path)
        tars, by_number = find_tars(path), False
        if tars:
            rows, by_number = _all_rows(tars)
        elif path.is_dir():
            rows = list(_folder_rows(path, b"", frozenset()))
        else:
            raise ValueError(f"expected images at {path}: a folder or a tar file, found neither")
        if not rows:
            raise ValueError(f"expected images at {path}, found none {_instead(path)}")
        width = max(len(row[0]) for row in rows)
        kinds = [("name", f"S{width}"), ("size", np.int64), ("tar", np.int32), ("at", np.int64)]
        # arrays rather than lists: workers share them without copying
        table = np.array(sorted(rows), dtype=kinds)
        found = _class_names(path, [row[0] for row in rows], by_number)
        return cls(path, tars, table, found if classes is None else classes)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names and sizes; the same wherever the images lie and however in tars."""
        digest = sha256()
        for name, size in zip(self._rows["name"].tolist(), self._rows["size"].tolist()):
            digest.update(name + b"\0%d\n" % size)
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images of those numbers, with the same classes."""
        rows = self._rows[np.fromiter(indices, np.int64)]
        return ImageSet(self.root, self.tars, rows, self.classes)

    def spread(self, num: int) -> "ImageSet":
        """At most `num` images, evenly over the whole set and so over its classes."""
        return self.subset(spread(len(self), num).tolist())

    def name(self, index: int) -> str:
        """`<class>/<file>`."""
        return os.fsdecode(bytes(self._rows["name"][index]))

    def where(self, index: int) -> str:
        """Path for messages; tar and member where it is in a tar."""
        name = self.name(index)
        if not self.tars:
            return str(self.root / name)
        return f"{self.tars[self._rows['tar'][index]]}: {name}"

    def load(self, index: int) -> np.ndarray:
        """Pixels uint8 (H, W, 3), to be left unchanged; BadImageError if there is no image."""
        if index in self._cache:
            return self._cache[index]
        image = decode(self._read(index), self.where(index))
        if len(self) * image.nbytes <= CACHE_BYTES:
            self._cache[index] = image
        return image

    def _read(self, index: int) -> bytes:
        row = self._rows[index]
        try:
            if not self.tars:
                return (self.root / self.name(index)).read_bytes()
            with open(self.tars[row["tar"]], "rb") as file:
                file.seek(row["at"])
                return file.read(int(row["size"]))
        except OSError as error:
            raise BadImageError(f"{self.where(index)}: {error.strerror or error}") from error


def split(image_set: ImageSet, val_share: float) -> tuple[ImageSet, ImageSet]:
    """(training, held-out) images, decided by the hash of each name.

    So an image stays on its side when others come or go. ValueError if a side would be empty.
    """
    digests = [
        sha256(image_set.name(i).encode(errors="surrogateescape")) for i in range(len(image_set))
    ]
    held_out = np.array([int.from_bytes(d.digest()[:8]) < val_share * 2.0**64 for d in digests])
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"{image_set.root}: a held-out share of {val_share} of {len(image_set)} images leaves "
            "one side empty; give another share, or held-out images of their own with --val"
        )
    train, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return image_set.subset(train), image_set.subset(val)


def _all_rows(tars: Sequence[Path]) -> tuple[list[Row], bool]:
    """The images of all tars, and whether their classes are the numbers in `.cls` files."""
    rows: list[Row] = []
    labelled = True
    for number, tar in enumerate(tars):
        found, from_files = tar_rows(tar, number)
        rows += found
        labelled = labelled and from_files
    return rows, labelled and all(row[0].partition(b"/")[0].isdigit() for row in rows)


def _folder_rows(folder: Path, prefix: bytes, above: frozenset) -> Iterator[Row]:
    """The images under `folder`; `above` are the folders it lies in, so that links end."""
    here = os.stat(folder)
    if (identity := (here.st_dev, here.st_ino)) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + os.fsencode(entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _folder_rows(Path(entry.path), name + b"/", above | {identity})
            elif is_image(entry.name) and (size := _size(entry)) is not None:
                yield name, size, 0, 0


def _size(entry: os.DirEntry) -> int | None:
    """None for a pipe or device, which might never end; 0 for a link to nothing, a bad image."""
    try:
        found = entry.stat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _instead(path: Path) -> str:
    """What lies in a folder without images, for the message."""
    compressed = sorted(p for pattern in COMPRESSED_NAMES for p in path.glob(pattern))
    if compressed:
        return f"but {compressed[0].name}; decompress it once, into a .tar or a folder"
    return f"({', '.join(EXTENSIONS)})"


def _class_names(path: Path, names: list[bytes], by_number: bool) -> tuple[str, ...]:
    """Sorted first folders of the names; none where the images lie in no folder."""
    loose = [name for name in names if b"/" not in name]
    folders = sorted({os.fsdecode(name.partition(b"/")[0]) for name in names if b"/" in name})
    if loose and folders:
        raise ValueError(
            f"{path}: expected every image in a class folder or none, found "
            f"'{os.fsdecode(loose[0])}' beside the folder '{folders[0]}'"
        )
    splits = [name for name in folders if name.lower() in SPLITS]
    if len(splits) > 1:
        raise ValueError(
            f"{path}: expected folders of classes, found '{splits[0]}' and '{splits[1]}'; "
            f"give one of them as the data and the other with --val"
        )
    return tuple(sorted(folders, key=int) if by_number else folders)
