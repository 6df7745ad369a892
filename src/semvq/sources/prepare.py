"""Any source of images to tar shards that a training reads, with a manifest.

manifest = prepare({"train": source}, Path("OUT"), Cut(256))
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from semvq.files import write_atomically
from semvq.sources.cutting import Cut, cut_all
from semvq.sources.items import START, Source
from semvq.sources.shards import (
    RECORDS,
    Count,
    Shard,
    clean,
    keep_plan,
    shards,
    write_shards,
)

MANIFEST, FORMAT = "manifest.json", "semvq prepared images 1"
MAX_GROUPS = 1000  # of duplicates that the manifest names
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
    where more than 1 % of a split's images are bad, and where two images have one name.
    """
    if not 1 <= per_shard <= MAX_SHARD:
        raise ValueError(f"--shard: expected 1 to {MAX_SHARD} images, found {per_shard}")
    if not (out / RECORDS).exists() and (found := sorted(out.glob("*.tar"))):
        raise ValueError(
            f"{out}: expected an empty folder or one that `semvq prepare` began, found "
            f"{found[0].name}"
        )
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    clean(out)
    for split, (_, source) in sources.items():
        plan = asdict(how) | {"shard": per_shard, "source": source.fingerprint}
        keep_plan(out, split, plan)
    splits = {}
    for split, (name, source) in sources.items():
        count = Count(name, source.num)
        for _ in _shards(out, split, source, how, per_shard, pool, count):
            if tell:
                tell(split, count.seen, source.num)
        count.end()
        splits[split] = {"source": name, "fingerprint": source.fingerprint} | _facts(out, split)
    manifest = {
        "format": FORMAT,
        **asdict(how),
        "shard": per_shard,
        "splits": splits,
        "duplicates": _duplicates(out, list(splits)),
    }
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def _shards(
    out: Path,
    split: str,
    source: Source,
    how: Cut,
    per_shard: int,
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
    yield from write_shards(out, split, number, results, per_shard, count)


def _facts(out: Path, split: str) -> dict[str, Any]:
    """What the manifest says of a split. ValueError for names that do not make an `ImageSet`."""
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
    _, names = _groups(out, [split], lambda shard: shard.names)
    for group in names:
        raise ValueError(f"{split}: expected images of different names, found two '{group[0][1]}'")
    images = sum(row["images"] for row in rows)
    return {"images": images, "classes": sorted(classes), "bad": bad, "shards": rows}


def _duplicates(out: Path, splits: list[str]) -> dict[str, Any]:
    """Images with exactly the same pixels: how many repeat an earlier one, by split; and which."""
    num, groups = _groups(out, splits, lambda shard: shard.digests)
    named = [[f"{split}: {name}" for split, name in group] for group in groups]
    return num | {"groups": named}


def _groups(
    out: Path, splits: list[str], facts: Callable[[Shard], list[str]]
) -> tuple[dict[str, Any], list[list[tuple[str, str]]]]:
    """Images that share a fact: counts, and (split, name) of the first groups of them.

    8 bytes of memory an image. What has equal hashes is looked at again, whole.
    """
    parts = []
    for split in splits:
        for shard in shards(out, split):
            parts.append(np.array([_hash(fact) for fact in facts(shard)], np.uint64))
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    repeated = values[counts > 1]
    found: dict[str, list[tuple[str, str]]] = {}
    for split in splits if len(repeated) else []:
        for shard in shards(out, split):
            for name, fact in zip(shard.names, facts(shard)):
                at = np.searchsorted(repeated, np.uint64(_hash(fact)))
                if at < len(repeated) and repeated[at] == _hash(fact):
                    found.setdefault(fact, []).append((split, name))
    groups = [group for group in found.values() if len(group) > 1]
    within = {s: sum(_within(group, s) for group in groups) for s in splits}
    across = {s: sum(_across(group, s, splits) for group in groups) for s in splits[1:]}
    return {"within": within, "across": across}, groups[:MAX_GROUPS]


def _within(group: list[tuple[str, str]], split: str) -> int:
    """Images of a split that repeat an earlier one of it."""
    return max(0, sum(own == split for own, _ in group) - 1)


def _across(group: list[tuple[str, str]], split: str, splits: list[str]) -> int:
    """Images of a split that an earlier one has too."""
    earlier = splits[: splits.index(split)]
    is_there = any(other in earlier for other, _ in group)
    return sum(own == split for own, _ in group) if is_there else 0


def _hash(fact: str) -> int:
    data = fact.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
