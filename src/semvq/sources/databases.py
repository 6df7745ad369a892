"""LMDB databases as LSUN has them: a folder with `data.mdb`, whose values are encoded images."""

import struct
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from semvq.sources.items import START, Item, Place, extra, fingerprint, naming, safe

WANTED = "an LMDB database of images"
MAGIC = 0xBEEFC0DE
# of a meta page, behind its head of 16 bytes: magic, page size, last page and transaction
META = struct.Struct("=16x I 20x I 92x 2Q")


class LmdbSource:
    """Images by key, in the database's order, which is that of the keys' bytes; no classes."""

    def __init__(self, path: Path) -> None:
        self.path, self.lmdb = path, extra("lmdb", str(path))
        with naming(str(path), WANTED), self._opened() as database:
            num = database.stat()["entries"]
            size = (path / "data.mdb").stat().st_size
        if not num:
            raise ValueError(f"{path}: expected images, found an empty database")
        self.num: int | None = num
        self.fingerprint = fingerprint([num, size])

    def items(self, start: Place = START) -> Iterator[Item]:
        """See `Source`."""
        with (
            naming(str(self.path), WANTED),
            self._opened() as database,
            database.begin() as transaction,
        ):
            cursor = transaction.cursor()
            # keys alone: what was done before is not read again
            for i, key in enumerate(islice(cursor.iternext(values=False), start[1], None)):
                name, number = _name(key), start[1] + i + 1
                where = f"{self.path}: {name}"
                yield Item(name, (0, number), where, partial(_read, transaction, key, where))

    def _opened(self) -> Any:
        _check_size(self.path / "data.mdb")
        # without a lock file, since the disk may be read-only, and without reading ahead
        return self.lmdb.open(
            str(self.path), readonly=True, lock=False, readahead=False, max_readers=1
        )


def _check_size(path: Path) -> None:
    """LMDB maps as many pages as its head names; reading behind the file's end kills a process.

    What is no LMDB file is left to LMDB to say.
    """
    size = path.stat().st_size
    metas = []
    with path.open("rb") as file:
        page = 0
        for _ in range(2):
            file.seek(page)
            if len(head := file.read(META.size)) < META.size:
                break
            magic, page, last, transaction = META.unpack(head)
            if magic != MAGIC:
                break
            metas.append((transaction, (last + 1) * page))
    if metas and size < max(metas)[1]:
        raise ValueError(
            f"{path.parent}: expected {path.name} of at least {max(metas)[1]} bytes, as its head "
            f"says, found {size}: it was cut short; get it again"
        )


def _read(transaction: Any, key: bytes, where: str) -> bytes:
    with naming(where, "an image in a whole LMDB database"):
        return transaction.get(key)


def _name(key: bytes) -> str:
    """The key, or its hexadecimal digits where it is no plain name."""
    text = key.decode("ascii", "replace")
    plain = text.isprintable() and "�" not in text and not set(text) & set("/.")
    return safe(text) if plain else key.hex()
