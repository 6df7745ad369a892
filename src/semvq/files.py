"""Files of a run folder: replaced in one step, and `config.json` read with a clear word if it is

another run's, or nobody's.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_NAMED = 6  # run folders that a message names


def replace_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Put at `path` what `write(temporary)` writes: whole and on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_config(folder: Path, family: str, wanted: str) -> Any:
    """The JSON in `folder/config.json` of a run that is, in words, `wanted` ("a tokenizer run").

    `family` is "tokenizer" or "generator". Raises FileNotFoundError where there is no run, and
    ValueError for no JSON or a run of the other family; both name runs nearby that would do.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected the folder of {wanted}, {_found_instead(folder)}; "
            f"{_advice(folder, family)}"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from None
    if family_of(record) not in (family, None):
        raise ValueError(
            f"{folder}: expected {wanted}, found {_in_words(record)}; {_advice(folder, family)}"
        )
    return record


def family_of(record: Any) -> str | None:
    """ "tokenizer" or "generator", by what a `config.json` holds; None if it is neither's."""
    if not isinstance(record, dict):
        return None
    if str(record.get("format")).startswith("semvq tokenizer"):
        return "tokenizer"
    return "generator" if "generator" in record else None


def _in_words(record: dict[str, Any]) -> str:
    if family_of(record) == "tokenizer":
        return "a tokenizer run"
    generator = record["generator"]
    kind = generator.get("kind") if isinstance(generator, dict) else None
    known = {"ARConfig": "an AR run", "NARConfig": "a NAR run"}
    return known.get(str(kind), "a generator's run")


def _found_instead(folder: Path) -> str:
    if not folder.exists():
        return "found no such folder"
    if not folder.is_dir():
        return "found a file"
    if (folder / "recipe.json").exists():
        return "found a run that has saved no model yet"
    return f"found a folder without {CONFIG}"


def _advice(folder: Path, family: str) -> str:
    """Runs of that family in the folder or else beside it; where there are none, what a run is."""
    for place in (folder, folder.parent):
        if near := _runs_in(place, family):
            more = f" and {len(near) - MAX_NAMED} more" if len(near) > MAX_NAMED else ""
            return f"give one of: {', '.join(map(str, near[:MAX_NAMED]))}{more}"
    return f"give a folder that `semvq train` made, with {CONFIG} and {WEIGHTS}"


def _runs_in(place: Path, family: str) -> list[Path]:
    found = []
    for path in sorted(place.glob(f"*/{CONFIG}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a stranger's file must not hide the message
        if family_of(record) == family:
            found.append(path.parent)
    return found
