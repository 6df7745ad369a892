"""A model's files as others get them, with a manifest: the size and sha256 of each.

Whoever changes a file and the manifest passes: it tells damage and mix-ups, not its author. Against
the latter a revision is pinned (`hub`).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semvq.files import (
    CONFIG,
    WEIGHTS,
    flush,
    read_json,
    reading,
    sha256_of,
    write_atomically,
    writing,
)

HIDDEN = ".semvq-part-"
MANIFEST, RECIPE = "manifest.json", "recipe.json"
README, PICTURE = "README.md", "picture.png"  # for people, and free to change
FORMAT = "semvq files 1"
NAMES = (WEIGHTS, CONFIG, RECIPE)  # what a manifest may name, and all that is ever fetched
AGAIN = "get it again from where it was published"


def check_new(folder: Path) -> None:
    """ValueError for a folder that holds files: they would be mixed with others."""
    if folder.exists() and (not folder.is_dir() or any(map(_is_other, folder.iterdir()))):
        raise ValueError(
            f"{folder}: expected a new folder, found one with files; give another --out"
        )


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A place to write to; its files are in `folder` at the end, or nowhere.

    `folder` is new, or there without them. The place is a hidden folder in it or, where it is new,
    beside it; a killed process leaves that.
    """
    target = folder.resolve()
    there = next(path for path in (target, *target.parents) if path.exists())
    with writing(folder):
        hidden = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=there))
    try:
        made = hidden / target.name  # with the usual rights, which `hidden` has not
        made.mkdir()
        yield made
        with writing(folder):
            for path in sorted(made.iterdir()):
                flush(path)
            if target.exists():  # as it is, with its owner and its rights
                for path in sorted(made.iterdir()):
                    path.rename(target / path.name)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.rename(target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _is_other(path: Path) -> bool:
    """Whether a file is nothing that a killed export left."""
    return not path.name.startswith(HIDDEN)


def write_manifest(folder: Path) -> None:
    """Write the manifest of those of `NAMES` that are in `folder`."""
    files = {name: _facts(folder / name) for name in NAMES if (folder / name).is_file()}
    record = {"format": FORMAT, "files": files}
    write_atomically(folder / MANIFEST, json.dumps(record, indent=1) + "\n")


def check_manifest(folder: Path) -> list[str]:
    """The names of the files, each one there with the size and sha256 that the manifest has.

    Raises FileNotFoundError for a missing file or manifest, ValueError for a changed one, by name.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the manifest that `semvq export RUN --to hub` writes, found none; "
            "is this another library's model?"
        )
    with reading(path):
        files = _read(path)
    for name, known in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: expected this file, which {MANIFEST} names, found none; {AGAIN}"
            )
        if (found := _facts(folder / name)) != known:
            raise ValueError(
                f"{folder / name}: expected {known['bytes']} bytes of sha256 "
                f"{str(known['sha256'])[:16]} as in {MANIFEST}, found {found['bytes']} of "
                f"{found['sha256'][:16]}; {AGAIN}"
            )
    return list(files)


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format '{FORMAT}', found another file")
    files = record.get("files")
    if not isinstance(files, dict) or not {WEIGHTS, CONFIG} <= set(files) <= set(NAMES):
        raise ValueError(f"{path}: expected {WEIGHTS}, {CONFIG} and at most {RECIPE} as files")
    for name, facts in files.items():
        if not isinstance(facts, dict) or sorted(facts) != ["bytes", "sha256"]:
            raise ValueError(f"{path}: expected bytes and sha256 of {name}, found {facts!r}")
    return files


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
