"""`semvq prepare`: any source of images to the tar shards that training reads."""

import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from semvq.data.shards import SPLITS
from semvq.files import one_line
from semvq.sources.cutting import Cut, processes
from semvq.sources.items import Listed, Renamed, Source, read_class_names, read_names
from semvq.sources.opening import one_source, open_sources
from semvq.sources.parquet import Columns
from semvq.sources.prepare import check_per_shard
from semvq.sources.prepare import prepare as prepare_images
from semvq.training.lock import only_job

MAX_NAMED = 3


def prepare(options: Namespace) -> None:
    """`semvq prepare`: shards and a manifest; what is bad or twice there is named."""
    how = Cut(options.size, options.quality, options.keep)
    check_per_shard(options.shard)
    _check_apart(options.out, [options.source, *(x.partition("=")[2] for x in options.split)])
    workers = _cores() if options.workers is None else options.workers
    with processes(workers) as pool:
        sources = _sources(options)
        with only_job(options.out):
            manifest = prepare_images(sources, options.out, how, options.shard, pool, _tell)
    _report(options.out, manifest)


def _check_apart(out: Path, sources: list[str]) -> None:
    """ValueError where shards would lie among images of a source, or above them."""
    place = out.resolve()
    for source in filter(None, sources):
        if "://" in source:
            continue
        path = Path(source).resolve()  # a pattern's name too: its files lie beside it
        if place == path or path in place.parents or place in path.parents:
            where = "one inside it" if path in place.parents else "one above it"
            where = "the source itself" if place == path else where
            raise ValueError(
                f"{out}: expected an OUT apart from the source {source}, found {where}; give "
                "a new folder elsewhere"
            )


def _cores() -> int:
    """Those that this process may use, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sources(options: Namespace) -> dict[str, tuple[str, Source]]:
    """(name, source) by split; the first is `train` where it does not say itself."""
    columns = Columns(options.image_column, options.label_column)
    opened = open_sources(options.source, columns)
    found = {split or "train": (options.source, source) for split, source in opened.items()}
    for text in options.split:
        split, _, source = text.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", split) or not source:
            raise ValueError(f"--split: expected NAME=SOURCE, such as val=HELD_OUT, found '{text}'")
        if split in found:
            raise ValueError(f"--split: expected a split beside {', '.join(found)}, found '{text}'")
        found[split] = (source, one_source(source, split, columns))
    for split in found if len(found) > 1 else ():
        if not set(re.split(r"[^a-z]+", split.lower())) & SPLITS:  # as training tells them apart
            raise ValueError(
                f"{options.out}: expected splits called train, val or test, found '{split}', which "
                "--data would take in with the others; call it so with --split, or give it an OUT "
                "of its own"
            )
    if options.val_list:
        found = _held_out(found, options.val_list)
    if options.class_names:
        names = read_class_names(options.class_names)
        found = {split: (name, Renamed(x, names)) for split, (name, x) in found.items()}
    return found


def _held_out(found: dict[str, tuple[str, Source]], path: Path) -> dict[str, tuple[str, Source]]:
    """The images that the file names as `val`, the others as `train`."""
    if set(found) != {"train"}:
        raise ValueError(f"--val-list: expected one source, found {' and '.join(found)}")
    name, source = found["train"]
    names = read_names(path)
    return {
        "train": (name, Listed(source, names, inside=False)),
        "val": (f"{name}, the images of {path.name}", Listed(source, names, inside=True)),
    }


def _tell(split: str, done: int, total: int | None) -> None:
    """A moving line on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        of = f" of {total}" if total else ""
        print(f"\r{split}: {done}{of} images", end="", file=sys.stderr, flush=True)


def _report(out: Path, manifest: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for split, facts in manifest["splits"].items():
        num, classes = len(facts["shards"]), len(facts["classes"])
        of = f" of {classes} classes" if classes else ""
        print(f"{split}: {facts['images']} images{of} in {num} shards")
        if bad := facts["bad"]:
            more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
            named = one_line("; ".join(bad[:MAX_NAMED]), 2000) + more
            print(f"left out {len(bad)} that cannot be read: {named}", file=sys.stderr)
    twice = manifest["duplicates"]
    for split, num in twice["within"].items():
        if num:
            print(f"{split}: {num} images repeat an earlier one, pixel by pixel", file=sys.stderr)
    for split, num in twice["across"].items():
        if num:
            which = one_line(", ".join(_first_across(twice["groups"])), 2000)
            print(f"{split}: {num} images are in an earlier split too: {which}", file=sys.stderr)
    splits = list(manifest["splits"])
    if len(splits) == 1:
        print(f"train with: --data {out}")
    else:
        val = next((x for x in splits if x.startswith("val")), splits[1])
        print(f"train with: --data '{out}/{splits[0]}-*.tar' --val '{out}/{val}-*.tar'")


def _first_across(groups: list[list[str]]) -> list[str]:
    """The first group that lies in two splits."""
    return next((g for g in groups if len({name.split(": ")[0] for name in g}) > 1), [])[:MAX_NAMED]
