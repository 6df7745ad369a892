"""Tar files, WebDataset shards among them: here, or anywhere that fsspec reaches.

One after the other, in the order given; in each the images stand by name. A remote one is copied
whole into the folder for temporary files, read like any other and removed.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

from semvq.data.shards import Row, tar_rows
from semvq.sources.items import (
    DIGITS,
    START,
    Item,
    Place,
    extra,
    fingerprint,
    keys,
    naming,
    numbered,
    safe,
)

MAX_FILES = 100_000  # that a brace range may mean


class TarSource:
    """The images of several tars; classes are their folders' names or those of `.cls` files."""

    def __init__(self, tars: list[str]) -> None:
        self.tars = tars
        self.num: int | None = None
        self.fingerprint = fingerprint(f"{Path(tar).name} {_size(tar)}" for tar in tars)

    def items(self, start: Place = START) -> Iterator[Item]:
        """See `Source`."""
        for number in range(start[0], len(self.tars)):
            first = start[1] if number == start[0] else 0
            with _here(self.tars[number]) as path:
                yield from _items(self.tars[number], path, number, first)


def _items(tar: str, path: Path, number: int, first: int) -> Iterator[Item]:
    with naming(tar, "a whole, uncompressed tar file of images"):
        rows, labelled = tar_rows(path, 0)
        rows.sort()
    key = keys((_name(row) for row in rows), len(rows))
    for i in range(first, len(rows)):
        name, where = key(_name(rows[i]), i), f"{tar}: {_name(rows[i])}"
        if labelled:
            label, _, rest = name.partition("/")
            with naming(where, "a class"):
                label = numbered(int(label)) if DIGITS.fullmatch(label) else safe(label)
            name = f"{label}/{rest}"
        yield Item(name, (number, i + 1), where, partial(_read, path, rows[i]))


def expand(pattern: str) -> list[str]:
    """Every name that `{000..146}` and `{a,b}` in a pattern mean, in order.

    ValueError for ranges that run backwards or mean more than 100,000 files.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(pattern, x) if i % 2 else [x] for i, x in enumerate(parts)]
    num = 1
    for found in choices:
        num *= len(found)
    if num > MAX_FILES:
        raise ValueError(f"{pattern}: expected at most {MAX_FILES} files, found {num}")
    return ["".join(name) for name in product(*choices)]


def _choices(pattern: str, inside: str) -> list[str]:
    if not (ends := re.fullmatch(r"(\d+)\.\.(\d+)", inside)):
        return inside.split(",")
    low, high = map(int, ends.groups())
    if not 0 <= high - low < MAX_FILES:
        raise ValueError(f"{pattern}: expected a range such as 000..146, found {inside}")
    return [f"{i:0{len(ends[1])}d}" for i in range(low, high + 1)]


@contextmanager
def _here(tar: str) -> Iterator[Path]:
    """The tar as a local file."""
    if "://" not in tar:
        yield Path(tar)
        return
    with tempfile.TemporaryDirectory(prefix="semvq-") as folder:
        path = Path(folder) / "fetched.tar"
        with (
            naming(tar, "a file that can be fetched"),
            extra("fsspec", tar).open(tar, "rb") as remote,
            path.open("wb") as file,
        ):
            shutil.copyfileobj(remote, file, 1 << 20)
        yield path


def _size(tar: str) -> int | None:
    if "://" not in tar:
        return Path(tar).stat().st_size
    with naming(tar, "a file that can be fetched"):
        files, path = extra("fsspec", tar).core.url_to_fs(tar)
        return files.info(path).get("size")


def _name(row: Row) -> str:
    return row[0].decode("utf-8", "surrogateescape")


def _read(path: Path, row: Row) -> bytes:
    with path.open("rb") as file:
        file.seek(row[3])
        return file.read(row[1])
