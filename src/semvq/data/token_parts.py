"""Joining the token caches that several processes made of their parts of one set of images."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from semvq.data.token_facts import FACTS, FILES, new_array, save_array
from semvq.data.tokens import TokenCache
from semvq.files import writing


def join_caches(folder: Path) -> None:
    """Replace the part caches `folder/000000`, `folder/000001`, … by one cache at `folder`.

    Parts are taken in order of their names. ValueError where there is none.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if not names:
        raise ValueError(f"{folder}: expected images to encode, found none that can be read")
    whole = folder.with_name(f"{folder.name}-whole")
    if len(names) == 1:
        os.rename(folder / names[0], whole)
    else:
        whole.mkdir()
        _join([TokenCache.open(folder / name) for name in names], whole)
    shutil.rmtree(folder)
    os.rename(whole, folder)


def _join(parts: list[TokenCache], whole: Path) -> None:
    first = parts[0]
    num = sum(map(len, parts))
    shape = (num, *first.codes.shape[1:])
    codes = new_array(whole / "codes.npy", first.codes.dtype, shape)
    start = 0
    for part in parts:
        codes[start : start + len(part)] = part.codes
        start += len(part)
    codes.flush()
    save_array(whole / "labels.npy", np.concatenate([part.labels for part in parts]))
    facts = json.loads((first.path / FACTS).read_text())
    facts |= {
        "num_images": num,
        "bad": [name for part in parts for name in part.bad],
        "sizes": {name: (whole / name).stat().st_size for name in FILES},
    }
    with writing(whole):
        (whole / FACTS).write_text(json.dumps(facts, indent=1))
