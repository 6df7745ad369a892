"""A folder of images or of class folders, in the order that training has."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from semvq.data.folders import ImageSet
from semvq.sources.items import START, Item, Place, keys


class FolderSource:
    """Files of a folder, by name; the first folder is the class."""

    def __init__(self, path: Path) -> None:
        self.images = ImageSet.open(path)
        self.num: int | None = len(self.images)
        self.fingerprint = self.images.fingerprint

    def items(self, start: Place = START) -> Iterator[Item]:
        """See `Source`."""
        images = self.images
        key = keys(map(images.name, range(len(images))), len(images))
        for i in range(start[1], len(images)):
            name = images.name(i)
            yield Item(key(name, i), (0, i + 1), images.where(i), partial(_read, images.root, name))


def _read(root: Path, name: str) -> bytes:
    return (root / name).read_bytes()
