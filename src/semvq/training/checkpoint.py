"""Checkpoints that are either whole or not there.

A checkpoint is a folder: tensors (safetensors), scalars (JSON) and, written last, a manifest with
the size and sha256 of both. It is made under a temporary name, flushed to disk and then renamed,
so a kill at any moment leaves the older one in place. No pickles.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvq.files import flush, sha256_of, writing

MANIFEST = "manifest.json"
FILES = ("tensors.safetensors", "scalars.json")


class CheckpointError(ValueError):
    """A checkpoint folder whose files are missing, truncated or altered."""


def save_checkpoint(
    folder: Path, images_seen: int, tensors: dict[str, Tensor], scalars: dict[str, Any], keep: int
) -> Path:
    """Write `folder/<images_seen>` atomically, then delete all but the newest `keep` whole ones.

    Raises OSError in one line where it cannot be written; the older ones are then as they were.
    """
    final = folder / f"{images_seen:012d}"
    temporary = folder / f"writing-{final.name}-{os.getpid()}"
    with writing(final):
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        try:
            _write(temporary, tensors, scalars)
            if final.exists():  # a broken one that a resumed run passed over
                os.replace(final, folder / f"writing-over-{final.name}")
            os.replace(temporary, final)
            flush(folder)
        finally:
            _clean(folder)
    _prune(folder, final, keep)
    return final


def _write(temporary: Path, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    temporary.mkdir()
    # clone() breaks shared storage, which safetensors refuses
    save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, temporary / FILES[0])
    (temporary / FILES[1]).write_text(json.dumps(scalars, indent=1, sort_keys=True))
    manifest = {name: _fingerprint(temporary / name) for name in FILES}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (*FILES, MANIFEST):
        flush(temporary / name)
    flush(temporary)


def _clean(folder: Path) -> None:
    """Delete what a save that was stopped, or this one, left behind."""
    for stale in folder.glob("writing-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Delete what is older than the last `keep` whole checkpoints up to `newest`.

    Broken ones do not count, so they never push out a good one. Later ones neither: a run that
    went on from an older one had passed them over.
    """
    whole = [path for path in checkpoints(folder) if path <= newest and _has_its_sizes(path)]
    for old in checkpoints(folder):
        if whole[-keep:] and old < whole[-keep:][0]:
            shutil.rmtree(old)


def _has_its_sizes(path: Path) -> bool:
    """Whether the files are as long as the manifest says: quick, for gigabytes are not read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return all(
            manifest[name].startswith(f"{(path / name).stat().st_size} bytes,") for name in FILES
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return False


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Tensors and scalars of the newest whole checkpoint, and a line per broken one passed over.

    None when there is no checkpoint at all. Raises CheckpointError when all are broken.
    """
    refused: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return *load_checkpoint(path), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError("; ".join(refused) + "; no whole checkpoint is left to resume from")
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and scalars of one checkpoint folder. Raises CheckpointError by name and cause."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in FILES:
            found = _fingerprint(path / name)
            if found != manifest[name]:
                raise CheckpointError(f"{path / name}: expected {manifest[name]}, found {found}")
        return load_file(path / FILES[0]), json.loads((path / FILES[1]).read_text())
    except CheckpointError:
        raise
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from error


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []


def _fingerprint(path: Path) -> str:
    return f"{path.stat().st_size} bytes, sha256 {sha256_of(path)}"
