"""Token cache: the codes of every image, so that a transformer's training never decodes an image.

A folder with `codes.npy` (num_images, num_views, h, w), `labels.npy` and `cache.json`. It belongs
to one code space (encoder, codebook, preprocessing) and says which by its hash.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semvq.data.images import DataConfig, ImageSet, Views, pieces, to_float
from semvq.data.order import VIEW, EpochOrder, batches, chunks, uniforms
from semvq.data.token_facts import FACTS, FILES, map_array, new_array, read_facts, save_array
from semvq.downloads import Progress
from semvq.files import writing

_SCAN_ROWS = 4096


class TokenCache:
    """An opened cache; the codes stay on disk. Use `TokenCache.open`.

    Attributes: `codes` (num_images, num_views, h, w), `labels` (num_images,), `num_codes`, `grid`
    (h, w), `num_views`, `classes`, `fingerprint` of the images, `code_space_hash`, and `bad`, the
    files that were left out.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.code_space_hash: str = facts["code_space_hash"]
        self.fingerprint: str = facts["fingerprint"]
        self.num_codes: int = facts["num_codes"]
        self.num_views: int = facts["num_views"]
        self.grid: tuple[int, int] = tuple(facts["grid"])
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.bad: tuple[str, ...] = tuple(facts["bad"])
        self._map()

    @classmethod
    def open(cls, path: str | Path, code_space_hash: str | None = None) -> "TokenCache":
        """Open and check a cache. `code_space_hash` None accepts any code space.

        Raises ValueError when there is no cache, when it is of another code space, when a file is
        truncated or of another kind, and when it holds a code or class that there is not.
        """
        path = Path(path)
        facts = read_facts(path)
        found = facts["code_space_hash"]
        if code_space_hash is not None and found != code_space_hash:
            raise ValueError(
                f"{path}: expected codes of code space {code_space_hash}, found {found}; encode "
                "the images anew with this tokenizer"
            )
        for name in FILES:
            size, expected = _size(path / name), facts["sizes"].get(name)
            if size != expected:
                raise ValueError(
                    f"{path / name}: expected {expected} bytes, found {size}; the file is "
                    "truncated or changed, encode the images anew"
                )
        cache = cls(path, facts)
        cache._check(facts)
        return cache

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Iterable[int], view: int = 0) -> tuple[Tensor, Tensor]:
        """Codes int64 (n, h, w) of one view, and labels int64 (n,)."""
        rows = np.fromiter(indices, np.int64)
        codes = torch.from_numpy(self.codes[rows, view].astype(np.int64))
        return codes, torch.from_numpy(self.labels[rows])

    def _map(self) -> None:
        self.codes = map_array(self.path / "codes.npy", "iu")
        self.labels = map_array(self.path / "labels.npy", "i")

    def _check(self, facts: dict[str, Any]) -> None:
        shape = (facts["num_images"], self.num_views, *self.grid)
        if self.codes.shape != shape or self.labels.shape != shape[:1]:
            raise ValueError(
                f"{self.path}: expected codes {shape}, found {self.codes.shape} "
                f"and labels {self.labels.shape}"
            )
        self._check_range("labels", self.labels, max(1, len(self.classes)))
        for rows in chunks(len(self), _SCAN_ROWS):
            self._check_range("codes", self.codes[rows.start : rows.stop], self.num_codes)

    def _check_range(self, what: str, found: np.ndarray, count: int) -> None:
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"{self.path}: expected {what} from 0 to {count - 1}, "
                f"found {high if high >= count else low}"
            )

    # a mapped array would be pickled whole, for every worker
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("codes", "labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


class TrainTokens(Dataset):
    """An endless stream of codes, by position; the view is drawn per (seed, epoch, index).

    Item: `codes` int64 (h, w), `label` and `index` int. The length is that of an epoch.
    """

    def __init__(self, cache: TokenCache, seed: int) -> None:
        self.cache, self.seed = cache, seed
        self._order = EpochOrder(len(cache), seed)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = self._order.locate(position)
        draw = uniforms(self.seed, VIEW, epoch, index, 1)[0]
        codes = self.cache.codes[index, int(draw * self.cache.num_views)]
        return {
            "codes": torch.from_numpy(codes.astype(np.int64)),
            "label": int(self.cache.labels[index]),
            "index": index,
        }


def write_tokens(
    path: str | Path,
    encode: Callable[[Tensor], Tensor],
    image_set: ImageSet,
    config: DataConfig,
    *,
    num_views: int,
    num_codes: int,
    code_space_hash: str,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Progress | None = None,
    part: range | None = None,
) -> TokenCache | None:
    """Encode `num_views` views of every image into a new cache at `path`, all or nothing.

    `encode` takes images (B, 3, H, W) in [-1, 1] to codes int64 (B, h, w). Images that cannot be
    read are left out and named in `bad`. With `part`, only the images of those numbers; None comes
    back where not one of them can be read. ValueError if something lies at `path`, and as `Views`.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"expected a new folder for the token cache, found {path}; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        views = Views(image_set, config, num_views)
        numbers = range(len(image_set)) if part is None else part
        batches_of = list(pieces(numbers, batch_size))
        facts = _encode(temporary, encode, views, num_codes, batches_of, num_workers, progress)
        if facts is None and part is not None:
            shutil.rmtree(temporary)
            return None
        if facts is None:
            raise ValueError(f"{image_set.root}: expected images, found none that can be read")
        facts |= {
            "code_space_hash": code_space_hash,
            "num_codes": num_codes,
            "num_views": num_views,
            "classes": list(image_set.classes),
            "fingerprint": image_set.fingerprint,
            "place": str(image_set.root.absolute()),  # for messages alone
            "sizes": {name: _size(temporary / name) for name in FILES},
        }
        with writing(path):
            (temporary / FACTS).write_text(json.dumps(facts, indent=1))
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return TokenCache.open(path, code_space_hash)


def _encode(
    folder: Path,
    encode: Callable[[Tensor], Tensor],
    views: Views,
    num_codes: int,
    numbers: list[range],
    num_workers: int,
    progress: Progress | None,
) -> dict[str, Any] | None:
    """Write the two arrays; returns the facts that only the encoding knows. None: no image."""
    num = sum(map(len, numbers))
    labels: list[int] = []
    bad: list[str] = []
    codes: np.memmap | None = None
    done = 0
    for rows, batch in zip(numbers, batches(views, numbers, num_workers)):
        bad += batch["bad"]
        if "image" in batch:
            images = to_float(batch["image"])
            found = encode(images.flatten(0, 1)).cpu().numpy()
            if codes is None:
                kind = np.dtype(np.uint16 if num_codes <= 65536 else np.int32)
                shape = (num, views.num_views, *found.shape[1:])
                codes = new_array(folder / "codes.npy", kind, shape)
            low, high = int(found.min()), int(found.max())
            assert low >= 0 and high < num_codes, f"the encoder gave codes {low} to {high}"
            start = len(labels)
            labels += batch["label"].tolist()
            codes[start : len(labels)] = found.reshape(-1, *codes.shape[1:])
        done += len(rows)
        if progress:
            progress("encoding", done, num)
    if codes is None:
        return None
    grid = list(codes.shape[2:])
    codes.flush()
    if len(labels) < num:
        kept = np.array(codes[: len(labels)])
        del codes
        save_array(folder / "codes.npy", kept)
    save_array(folder / "labels.npy", np.array(labels, np.int64))
    return {"num_images": len(labels), "grid": grid, "bad": bad}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
