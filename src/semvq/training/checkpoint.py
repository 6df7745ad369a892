"""Checkpoints that are either whole or not there.

A checkpoint is a folder: tensors (safetensors), scalars (JSON) and, written last, a manifest with
the size and sha256 of both. It is made under a temporary name, flushed to disk and then renamed,
so a kill at any moment leaves the older one in place. No pickles.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvq.files import flush

MANIFEST = "manifest.json"
FILES = ("tensors.safetensors", "scalars.json")


class CheckpointError(ValueError):
    """A checkpoint folder whose files are missing, truncated or altered."""


def save_checkpoint(
    folder: Path, images_seen: int, tensors: dict[str, Tensor], scalars: dict[str, Any], keep: int
) -> Path:
    """Write `folder/<images_seen>` atomically, then delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("writing-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"{images_seen:012d}"
    temporary = folder / f"writing-{images_seen:012d}-{os.getpid()}"
    temporary.mkdir()
    # clone() breaks shared storage, which safetensors refuses
    save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, temporary / FILES[0])
    (temporary / FILES[1]).write_text(json.dumps(scalars, indent=1, sort_keys=True))
    manifest = {name: _fingerprint(temporary / name) for name in FILES}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (*FILES, MANIFEST):
        flush(temporary / name)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


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
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from error


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return (
            f"{path.stat().st_size} bytes, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
        )
