"""Any source of images to tar shards that a training reads, with a manifest.

manifest = prepare({"train": source}, Path("OUT"), Cut(256))
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from semvq.data.shards import is_image
from semvq.files import write_atomically
from semvq.sources.cutting import Cut, cut_all
from semvq.sources.items import START, Source
from semvq.sources.shards import (
    RECORDS,
    Count,
    Shard,
    begun,
    check_plan,
    clean,
    keep_plan,
    shards,
    unclaimed,
    write_shards,
)

MANIFEST, FORMAT = "manifest.json", "semvq prepared images 1"
MAX_GROUPS, MAX_NAMES = 1000, 10  # of duplicates that the manifest names, and in each
MAX_SHARD = 50_000  # images
Told = Callable[[str, int, int | None], None]  # split, images so far, of how many


def prepare(
    sources: dict[str, tuple[str, Source]],
    out: Path,
    how: Cut,
    per_shard: int = 1000,
    pool: Executor | None = None,
    tell: Told | None = None,
) -> dict[str, Any]:
    """Cut every split's (name, source) into `out/<split>-00000.tar` …; returns the manifest.

    Goes on where an earlier call with the same arguments stopped. ValueError where it had others,
    where `out` holds other files, where more than 1 % of a split's images are bad, and where two
    images have one name. A split of which nothing could be stored is forgotten.
    """
    check_per_shard(per_shard)
    _check_out(out, list(sources))
    clean(out, sources)
    facts = asdict(how) | {"shard": per_shard}
    plans = {
        split: facts | {"source": source.fingerprint, "from": name}
        for split, (name, source) in sources.items()
    }
    for split, plan in plans.items():
        check_plan(out, split, plan)
    splits = {}
    for split, (name, source) in sources.items():
        with unclaimed(out, split):
            count = Count(name, source.num)
            found = _split(out, split, source, how, plans[split], pool, count, tell)
        splits[split] = {"source": name, "fingerprint": source.fingerprint} | found
    manifest = {
        "format": FORMAT,
        **asdict(how),
        "shard": per_shard,
        "splits": splits,
        "duplicates": _duplicates(out, list(splits)),
    }
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def check_per_shard(num: int) -> None:
    """ValueError for a number of images that makes no shard."""
    if not 1 <= num <= MAX_SHARD:
        raise ValueError(f"--shard: expected 1 to {MAX_SHARD} images, found {num}")


def _check_out(out: Path, splits: list[str]) -> None:
    """ValueError for a folder of other files, and for one that has more splits than are given."""
    if not (out / RECORDS).exists():
        there = sorted(out.iterdir()) if out.exists() else []
        if other := [path.name for path in there if _is_read_in_training(path)]:
            raise ValueError(
                f"{out}: expected a folder without images or one that `semvq prepare` began, "
                f"found {other[0]}; give another OUT"
            )
    before = begun(out)
    if missing := [split for split in before if split not in splits]:
        raise ValueError(
            f"{out}: expected the splits {' and '.join(before)}, as when it was begun, found "
            f"{' and '.join(splits)} alone; give {missing[0]} again (it was made of "
            f"{before[missing[0]]}), or another OUT"
        )


def _is_read_in_training(path: Path) -> bool:
    """Whether it would stand beside the shards as images do: not a log or a README."""
    if path.name.startswith("."):
        return False
    return path.is_dir() or path.suffix == ".tar" or path.name == MANIFEST or is_image(path.name)


def _split(
    out: Path,
    split: str,
    source: Source,
    how: Cut,
    plan: dict[str, Any],
    pool: Executor | None,
    count: Count,
    tell: Told | None,
) -> dict[str, Any]:
    """Store a split, and what the manifest says of it."""
    known = np.empty(0, np.uint64)
    for shard in _shards(out, split, source, how, plan, pool, count):
        known = _with_names(known, shard, out, split)
        if tell:
            tell(split, count.seen, source.num)
    count.end()
    facts = _facts(out, split)
    if (good := count.seen - count.bad) != facts["images"]:
        raise ValueError(
            f"{out}: expected records of {good} images for '{split}', found {facts['images']}; "
            "run the same command again"
        )
    return facts


def _shards(
    out: Path,
    split: str,
    source: Source,
    how: Cut,
    plan: dict[str, Any],
    pool: Executor | None,
    count: Count,
) -> Iterator[Shard]:
    """Those that are there, then the others, which it writes."""
    number, place = 0, START
    for shard in shards(out, split, check=True):
        number, place = number + 1, shard.after
        count.add(len(shard.names), shard.bad)
        yield shard
    results = cut_all(source.items(place), how, pool)
    if (first := next(results, None)) is None:
        return
    keep_plan(out, split, plan)  # only now: a source that cannot be read claims no folder
    yield from write_shards(out, split, number, chain([first], results), plan["shard"], count)


def _facts(out: Path, split: str) -> dict[str, Any]:
    """What the manifest says of a split. ValueError for images in a class beside others."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    classes: set[str] = set()
    loose = None
    for shard in shards(out, split):
        bad += shard.bad
        if shard.name:
            facts = {"name": shard.name, "images": len(shard.names)}
            rows.append(facts | {"bytes": shard.bytes, "sha256": shard.sha256})
        for name in shard.names:
            label, slash, _ = name.partition("/")
            if slash:
                classes.add(label)
            else:
                loose = name
    if loose is not None and classes:
        raise ValueError(
            f"{split}: expected every image in a class or none, found '{loose}' beside the class "
            f"'{min(classes)}'"
        )
    images = sum(row["images"] for row in rows)
    return {"images": images, "classes": sorted(classes), "bad": bad, "shards": rows}


def _with_names(known: np.ndarray, shard: Shard, out: Path, split: str) -> np.ndarray:
    """The hashes of a split's names (sorted uint64), with a shard's. ValueError for one twice."""
    new = np.sort(np.array([_hash(name) for name in shard.names], np.uint64))
    at = np.searchsorted(known, new)
    is_old = np.isin(new, known[at[at < len(known)]])
    if is_old.any() or (new[1:] == new[:-1]).any():
        for group in _repeated(out, [split], lambda shard: shard.names)[1]:
            raise ValueError(
                f"{split}: expected images of different names, found two '{group[0][1]}' (a dot in "
                "a name counts as '_'); name the files apart, and give another OUT"
            )
    return np.insert(known, at, new)


def _duplicates(out: Path, splits: list[str]) -> dict[str, Any]:
    """Images with exactly the same pixels: how many repeat an earlier one, by split; and which."""
    counts, groups = _repeated(out, splits, lambda shard: shard.digests)
    within = (counts - 1).clip(min=0).sum(1)
    earlier = counts.cumsum(0) - counts > 0
    across = np.where(earlier, counts, 0).sum(1)
    return {
        "within": dict(zip(splits, within.tolist())),
        "across": dict(zip(splits[1:], across[1:].tolist())),
        "groups": [[f"{split}: {name}" for split, name in group] for group in groups],
    }


def _repeated(
    out: Path, splits: list[str], facts: Callable[[Shard], list[str]]
) -> tuple[np.ndarray, list[list[tuple[str, str]]]]:
    """How many images of every split have a value of a fact: int64 (splits, values).

    And (split, name) of those that share one: the first of them. Values are told apart by 64 bits,
    by which two of a million agree with a chance of 3e-8; those that are named, by all.
    """
    parts = [
        [np.array([_hash(x) for x in facts(shard)], np.uint64) for shard in shards(out, split)]
        for split in splits
    ]
    hashes = [np.concatenate(part) for part in parts]
    values, first, num = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    counts = np.stack(
        [np.bincount(np.searchsorted(values, x), minlength=len(values)) for x in hashes]
    )
    repeated = np.flatnonzero(num > 1)
    repeated = repeated[np.argsort(first[repeated])][:MAX_GROUPS]
    wanted = set(values[repeated].tolist())
    found: dict[str, list[tuple[str, str]]] = {}
    for split in splits if wanted else []:
        for shard in shards(out, split):
            for name, fact in zip(shard.names, facts(shard)):
                if _hash(fact) in wanted and len(found.setdefault(fact, [])) < MAX_NAMES:
                    found[fact].append((split, name))
    return counts, [group for group in found.values() if len(group) > 1]


def _hash(fact: str) -> int:
    data = fact.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
