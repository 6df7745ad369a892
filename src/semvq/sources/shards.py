"""Tar shards of prepared images, whole or not there, and a record of each.

Equal images give equal bytes. A run that was stopped, however, goes on after the last shard that is
as its record says; the records stay in `.prepare/`, for that and for the duplicates.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from semvq.data.order import MAX_BAD_SHARE
from semvq.files import one_line, read_json, replace_atomically, sha256_of, write_atomically
from semvq.sources.cutting import Done
from semvq.sources.items import START, Place

RECORDS = ".prepare"
_NUMBER = re.compile(r"-[0-9]{5}$")  # of a shard, behind the name of its split
FORMAT = tarfile.GNU_FORMAT  # names of any length and bytes
MIN_BAD = 100  # bad images that may come before the first good ones, where nobody knows how many


@dataclass
class Shard:
    """What one tar holds: the items from one place of the source to another, less the bad ones.

    `name` is None where all were bad, and there is no tar.
    """

    name: str | None
    after: Place
    bytes: int = 0
    sha256: str = ""
    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass
class Count:
    """Images so far, and those of them that are bad. ValueError when too many are."""

    where: str
    total: int | None
    seen: int = 0
    bad: int = 0
    some: list[str] = field(default_factory=list)

    def add(self, good: int, bad: list[str]) -> None:
        """More than 1 % (and more than one) are too many, of the total if it is known."""
        self.seen, self.bad = self.seen + good + len(bad), self.bad + len(bad)
        self.some = (self.some + bad)[:3]
        least, num = (1, self.total) if self.total else (MIN_BAD, self.seen)
        self._check(max(least, MAX_BAD_SHARE * num))

    def end(self) -> None:
        """At the end of the source."""
        if self.total not in (None, self.seen):
            raise ValueError(f"{self.where}: expected {self.total} images, found {self.seen}")
        self._check(max(1, MAX_BAD_SHARE * self.seen))
        if self.seen == self.bad:
            raise ValueError(f"{self.where}: expected images, found none")

    def _check(self, allowed: float) -> None:
        if self.bad > int(allowed):
            raise ValueError(
                f"{self.where}: {self.bad} of {self.total or self.seen} images cannot be read, "
                f"more than {MAX_BAD_SHARE:.0%}: {'; '.join(self.some)}; repair or remove them"
            )


def shards(folder: Path, split: str, check: bool = False) -> Iterator[Shard]:
    """The shards of a split, in order; with `check` up to the first not as its record says."""
    number = 0
    while (record := _record(folder, split, number)).exists():
        try:
            # ours, and of any size: it holds 50,000 names
            shard = Shard(**json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return
        if check and shard.name is not None and _sha256(folder / shard.name) != shard.sha256:
            return
        shard.after = (shard.after[0], shard.after[1])
        yield shard
        number += 1


def write_shards(
    folder: Path, split: str, first: int, results: Iterator[Done], size: int, count: Count
) -> Iterator[Shard]:
    """Write shards of `size` items from number `first` on, one at a time."""
    for number in range(first, 100_000):
        if not (start := list(islice(results, 1))):
            return
        name = f"{split}-{number:05d}.tar"
        shard = Shard(name, START)

        def write(path: Path, shard: Shard = shard, start: list[Done] = start) -> None:
            with path.open("wb") as file:
                _fill(file, shard, _joined(start, islice(results, size - 1)), count)

        replace_atomically(folder / name, write)
        if not shard.names:
            (folder / name).unlink()  # training refuses a tar without images
            shard.name = None
        else:
            shard.bytes = (folder / name).stat().st_size
            shard.sha256 = _sha256(folder / name) or ""
        write_atomically(_record(folder, split, number), json.dumps(asdict(shard)))
        yield shard
    raise ValueError(f"{folder}: expected at most 100000 shards; give a larger --shard")


def _joined(start: list[Done], rest: Iterator[Done]) -> Iterator[Done]:
    yield from start
    try:
        yield from rest
    except OSError as error:  # of the source, and not of the place written to
        raise ValueError(one_line(error)) from error


def _fill(file: IO[bytes], shard: Shard, results: Iterator[Done], count: Count) -> None:
    with tarfile.open(fileobj=file, mode="w", format=FORMAT) as archive:
        for done in results:
            shard.after = done.after
            if isinstance(done.result, str):
                shard.bad.append(done.result)
                count.add(0, [done.result])
                continue
            member = tarfile.TarInfo(f"{done.name}.{done.result.extension}")
            member.size = len(done.result.data)
            archive.addfile(member, io.BytesIO(done.result.data))
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            shard.names.append(done.name)
            shard.digests.append(done.result.digest)
            count.add(1, [])


def clean(folder: Path, splits: Iterable[str]) -> None:
    """Remove what a killed run had not finished: temporary files of its shards and records."""
    of = "|".join(map(re.escape, splits))
    ours = {
        folder: rf"\.((?:{of})-[0-9]{{5}}\.tar|manifest\.json)\.[0-9]+",
        folder / RECORDS: rf"\.(?:{of})(-[0-9]{{5}})?\.json\.[0-9]+",
    }
    for place, pattern in ours.items():
        for path in place.glob(".*.*"):
            if re.fullmatch(pattern, path.name) and path.is_file():
                path.unlink()


def _record(folder: Path, split: str, number: int) -> Path:
    return folder / RECORDS / f"{split}-{number:05d}.json"


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return None


def begun(folder: Path) -> dict[str, str]:
    """The splits of which something is stored, and what each was made of, in words."""
    plans = (path for path in (folder / RECORDS).glob("*.json") if not _NUMBER.search(path.stem))
    found = {path.stem: path for path in sorted(plans) if _is_stored(folder, path.stem)}
    return {split: read_json(path).get("from", "a source") for split, path in found.items()}


def check_plan(folder: Path, split: str, plan: dict[str, Any]) -> None:
    """ValueError if a split was begun with something else than its plan.

    What was begun and stored nothing, as a run that was killed early does, is forgotten.
    """
    if not (path := folder / RECORDS / f"{split}.json").exists():
        return
    before = read_json(path)
    differs = [name for name in plan if name != "from" and before.get(name) != plan[name]]
    if differs and not _is_stored(folder, split):
        forget(folder, split)
    elif differs:
        name = differs[0]
        raise ValueError(
            f"{folder}: expected {name} {_in_words(before, name)} for '{split}', as when it was "
            f"begun, found {_in_words(plan, name)}; give another OUT, or remove this one"
        )


def keep_plan(folder: Path, split: str, plan: dict[str, Any]) -> None:
    """Note what a split is made of, unless that is noted."""
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    if not (path := folder / RECORDS / f"{split}.json").exists():
        write_atomically(path, json.dumps(plan))


@contextmanager
def unclaimed(folder: Path, split: str) -> Iterator[None]:
    """Where it fails inside before anything is stored, another source may have the split."""
    try:
        yield
    except BaseException:
        if not _is_stored(folder, split):
            forget(folder, split)
        raise


def forget(folder: Path, split: str) -> None:
    """Remove the plan and the records of a split."""
    for path in (folder / RECORDS).glob("*.json"):
        if _NUMBER.sub("", path.stem) == split:
            path.unlink()
    with suppress(OSError):  # it holds other splits', or is not there
        (folder / RECORDS).rmdir()


def _is_stored(folder: Path, split: str) -> bool:
    tars = (path.stem for path in folder.glob("*.tar"))
    return any(_NUMBER.search(name) and _NUMBER.sub("", name) == split for name in tars)


def _in_words(plan: dict[str, Any], name: str) -> str:
    """A value of a plan; of a source its path, and enough of its fingerprint to tell it by."""
    value = plan.get(name)
    return f"{plan.get('from', '')} ({str(value)[:8]})".lstrip() if name == "source" else str(value)
