"""What every source gives: images one at a time, in an order that is always the same.

A source is read from a place on, so that a run that was stopped goes on without reading it all
again. Names are `<class>/<key>` or `<key>`, as an `ImageSet`'s, without the extension.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from semvq.files import one_line

Place = tuple[int, int]  # (file of the source, image in it)
START: Place = (0, 0)
DIGITS = re.compile("[0-9]+")
Content = bytes | np.ndarray  # an encoded image, or pixels uint8 (H, W, 3)


@dataclass(frozen=True)
class Item:
    """One image: where the source goes on `after` it, what messages call it, and how to `read` it.

    `read` is for now, before the next item is asked for; it raises OSError or BadImageError where
    there is nothing to read.
    """

    name: str
    after: Place
    where: str
    read: Callable[[], Content]


class Source(Protocol):
    """Images in a fixed order; `num` of them, or None where only reading tells.

    `fingerprint` changes when names or sizes do, and not with the place where the source lies.
    """

    num: int | None
    fingerprint: str

    def items(self, start: Place = START) -> Iterator[Item]:
        """The images from a place on. ValueError or OSError, by name, where the source breaks."""
        ...


class Listed:
    """Those images of a source that a list names, or those that it does not."""

    def __init__(self, source: Source, names: frozenset[str], inside: bool) -> None:
        self.source, self.names, self.inside = source, names, inside
        self.num = len(names) if inside else None
        self.fingerprint = fingerprint([source.fingerprint, inside, *sorted(names)])

    def items(self, start: Place = START) -> Iterator[Item]:
        """As of any source; what is left out is not read."""
        return (x for x in self.source.items(start) if (x.name in self.names) == self.inside)


class Renamed:
    """A source whose classes get a name behind their own: `n01440764` is `n01440764 tench`."""

    def __init__(self, source: Source, names: dict[str, str]) -> None:
        self.source, self.names, self.num = source, names, source.num
        self.fingerprint = fingerprint([source.fingerprint, repr(sorted(names.items()))])

    def items(self, start: Place = START) -> Iterator[Item]:
        """As of any source. ValueError for a class without a name."""
        for item in self.source.items(start):
            label, slash, key = item.name.partition("/")
            if slash and label not in self.names:
                raise ValueError(
                    f"{item.where}: expected a class that --class-names has, found '{label}'"
                )
            yield replace(item, name=f"{label} {self.names[label]}/{key}") if slash else item


def read_names(path: Path) -> frozenset[str]:
    """The images that a text file names, one path a line. ValueError where it names none."""
    names = frozenset(stem(line.strip()) for line in _lines(path) if line.strip())
    if not names:
        raise ValueError(f"{path}: expected names of images, one a line, found none")
    return names


def read_class_names(path: Path) -> dict[str, str]:
    """Names by class from lines `<class> <name>, <further names>`: the first name of each."""
    found = {}
    for line in filter(str.strip, _lines(path)):
        label, _, names = line.strip().partition(" ")
        name = names.partition(",")[0].strip()
        if not name or "/" in label:
            raise ValueError(f"{path}: expected '<class> <name>' on every line, found {line!r}")
        found[label] = safe(name)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text, found {error.reason}") from None


def stem(name: str) -> str:
    """A file's name without its extension, and without dots: WebDataset keys end at the first."""
    folder, slash, file = os.path.normpath(name).rpartition("/")
    return folder + slash + os.path.splitext(file)[0].replace(".", "_")


def keys(names: Iterable[str], num: int) -> Callable[[str, int], str]:
    """(name, its number) -> the name of the item.

    The extension stays where two differ in it alone. Names that would still be one, such as
    `a.b.png` and `a_b.png`, get 16 digits of their own behind. `num` names are looked at once and
    kept as 16 bytes each.
    """
    hashes = np.empty((2, num), np.uint64)
    for i, name in enumerate(names):
        hashes[:, i] = _short(stem(name)), _short(_with_extension(name))
    is_twin = _repeats(hashes[0])
    still = _repeats(np.where(is_twin, hashes[1], hashes[0]))

    def key(name: str, number: int) -> str:
        found = _with_extension(name) if is_twin[number] else stem(name)
        return f"{found}_{_short(name):016x}" if still[number] else found

    return key


def _with_extension(name: str) -> str:
    return stem(name) + "_" + os.path.splitext(name)[1][1:]


def _repeats(values: np.ndarray) -> np.ndarray:
    """Which values are there more than once: bool, one each."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts > 1)[inverse]


def _short(name: str) -> int:
    data = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def class_folders(names: Sequence[str]) -> list[str]:
    """Folders for classes 0, 1, …, so named that their sorted order is that of the numbers.

    They are the names where these are sorted; ascending numbers as names get five digits; else the
    number goes before the name.
    """
    found = [safe(name) for name in names]
    if found == sorted(set(found)):
        return found
    if all(DIGITS.fullmatch(name) and len(name) <= 5 for name in found):
        filled = [numbered(int(name)) for name in found]
        if filled == sorted(set(filled)):
            return filled
    width = len(str(len(found) - 1))
    return [f"{i:0{width}d} {name}" for i, name in enumerate(found)]


def numbered(label: int) -> str:
    """The folder of a class that has a number only."""
    if not 0 <= label < 100_000:
        raise ValueError(f"expected classes numbered from 0 to 99999, found {label}")
    return f"{label:05d}"


def safe(name: str) -> str:
    """A class's name as that of a folder."""
    found = re.sub(r"[/\x00-\x1f\x7f]", "_", name.strip())
    return "_" + found.lstrip(".") if found.startswith(".") or not found else found


def fingerprint(facts: Iterable[object]) -> str:
    """sha256 over what identifies a source."""
    digest = sha256()
    for fact in facts:
        digest.update(str(fact).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def extra(module: str, source: str) -> Any:
    """A package that only some sources need. ValueError that says how to install it."""
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"{source}: expected the package {module.partition('.')[0]} to read it, found none; "
            "install it with: pip install 'semvq[sources]'"
        ) from None


@contextmanager
def naming(source: str, wanted: str) -> Iterator[None]:
    """Turn whatever a stranger's file breaks in its library into one line with its name.

    An error that begins with the source stays as it is, and an OSError stays one.
    """
    try:
        yield
    except OSError as error:
        if str(error).startswith(source):
            raise
        raise OSError(f"{source}: {one_line(error)}") from error
    except ImportError as error:  # fsspec's, for a scheme whose package is not there
        raise ValueError(f"{source}: {one_line(error)}") from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(source):
            raise
        found = one_line(error) or type(error).__name__
        raise ValueError(f"{source}: expected {wanted}, found: {found}") from error
