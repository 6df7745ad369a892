"""Joining the token caches that several processes made of their parts of one set of images."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from semvq.data.tokens import TokenCache


def join_caches(folder: Path, fingerprint: str) -> None:
    """Replace the part caches `folder/000000`, `folder/000001`, … by one cache at `folder`.

    Parts are taken in order of their names; `fingerprint` is that of all the images together.
    """
    names = sorted(p.name for p in folder.iterdir())
    whole = folder.with_name(f"{folder.name}-whole")
    whole.mkdir()
    _join([TokenCache.open(folder / name) for name in names], whole, fingerprint)
    shutil.rmtree(folder)
    os.rename(whole, folder)


def _join(parts: list[TokenCache], whole: Path, fingerprint: str) -> None:
    first = parts[0]
    num = sum(map(len, parts))
    shape = (num, *first.codes.shape[1:])
    codes = np.lib.format.open_memmap(whole / "codes.npy", "w+", first.codes.dtype, shape)
    start = 0
    for part in parts:
        codes[start : start + len(part)] = part.codes
        start += len(part)
    codes.flush()
    np.save(whole / "labels.npy", np.concatenate([part.labels for part in parts]))
    facts = json.loads((first.path / "cache.json").read_text())
    facts |= {
        "num_images": num,
        "fingerprint": fingerprint,
        "bad": [name for part in parts for name in part.bad],
        "sizes": {name: (whole / name).stat().st_size for name in ("codes.npy", "labels.npy")},
    }
    (whole / "cache.json").write_text(json.dumps(facts, indent=1))
