"""LMDB databases as LSUN has them: a folder with `data.mdb`, whose values are encoded images."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from semvq.sources.items import START, Item, Place, extra, fingerprint, naming, safe

WANTED = "an LMDB database of images"


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
                yield Item(name, (0, number), where, partial(transaction.get, key))

    def _opened(self) -> Any:
        # without a lock file, since the disk may be read-only, and without reading ahead
        return self.lmdb.open(
            str(self.path), readonly=True, lock=False, readahead=False, max_readers=1
        )


def _name(key: bytes) -> str:
    """The key, or its hexadecimal digits where it is no plain name."""
    text = key.decode("ascii", "replace")
    plain = text.isprintable() and "�" not in text and not set(text) & set("/.")
    return safe(text) if plain else key.hex()
