"""Files of a run folder: replaced in one step, and `config.json` read with a clear word if it is

another run's, or nobody's. What a stranger's file holds can end in one line only.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_NAMED = 6  # run folders that a message names
MAX_CONFIG = 2**24  # bytes; far above any use
MAX_LINE = 500  # letters of a message about a stranger's file


def replace_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Put at `path` what `write(temporary)` writes: whole and on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written to into an OSError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path}: expected room and permission to write, found {one_line(error)}; see to it "
            "and run the same command again: what was saved before is as it was"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a stranger's files at `path` break inside into a ValueError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except ValueError as error:
        line = one_line(error)
        if line == str(error):
            raise
        raise ValueError(line) from error
    except (
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        MemoryError,
        RuntimeError,  # RecursionError too
        SafetensorError,
    ) as error:
        raise ValueError(
            f"{path}: expected a saved model, found files that make none "
            f"({type(error).__name__}: {one_line(error)}); get it again from where it was made"
        ) from error


def one_line(words: object, most: int = MAX_LINE) -> str:
    """Any words on one line, cut to `most` letters; what a terminal would obey is spelt out."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(words).split()))
    return line if len(line) <= most else line[:most] + " …"


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    record = read_json(path)
    if family_of(record) not in (family, None):
        raise ValueError(
            f"{folder}: expected {wanted}, found {_in_words(record)}; {_advice(folder, family)}"
        )
    return record


def read_json(path: Path) -> Any:
    """What a JSON file holds. ValueError for another file, and for numbers no config can mean."""
    if (size := path.stat().st_size) > MAX_CONFIG:
        raise ValueError(f"{path}: expected at most {MAX_CONFIG} bytes of JSON, found {size}")
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(f"{path}: expected JSON, found one nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from None


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"expected finite numbers, found {text[:40]}")
    return number


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"expected whole numbers of 64 bits, found {text[:20]}…")
    return int(text)


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
            record = read_json(path)
        except (OSError, ValueError):
            continue  # a stranger's file must not hide the message
        if family_of(record) == family:
            found.append(path.parent)
    return found
