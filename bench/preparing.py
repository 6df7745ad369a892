"""`semvq prepare` on many images: how fast, and in what memory.

    python -m bench.preparing --images 100000 --kind tar

Makes a source of tiny images in a temporary folder, cuts it into shards and prints JSON: images per
second, and MB of this process (its own pages, not those of mapped files) after a tenth of the
images, at most from there on, and at the end; with the manifest's duplicates looked for, 8 bytes an
image. `workers_mb` is the most that a process of the pool had, then and at the end.
"""

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from semvq.sources.cutting import Cut, processes
from semvq.sources.opening import open_sources
from semvq.sources.parquet import Columns
from semvq.sources.prepare import prepare

SIDE, SIZE, PER_SHARD = 32, 16, 1000
KINDS = ("folder", "tar", "parquet", "lmdb", "npz")


def main() -> None:
    """See the head of this file."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--images", type=int, default=100_000)
    p.add_argument("--kind", choices=KINDS, default="tar")
    p.add_argument("--workers", type=int, default=2)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.kind, options.images, options.workers)))


def measure(folder: Path, kind: str, num: int, workers: int) -> dict[str, object]:
    """Prepare `num` images of a kind of source in `folder`; figures as in the head of this file."""
    made = make(folder / kind, kind, num)
    seen: list[tuple[int, float, float]] = []

    def look(split: str, done: int, total: int | None) -> None:
        seen.append((done, memory(), most_of_workers()))

    with processes(workers) as pool:
        began = time.perf_counter()
        source = next(iter(open_sources(str(made), Columns()).values()))
        found = prepare({"train": (kind, source)}, folder / "out", Cut(SIZE), PER_SHARD, pool, look)
        seconds = time.perf_counter() - began
        end = memory()
    assert found["splits"]["train"]["images"] == num
    warm = [x for x in seen if x[0] >= num // 10]
    return {
        "kind": kind,
        "images": num,
        "workers": workers,
        "images_per_second": round(num / seconds),
        "mb_at_a_tenth": warm[0][1],
        "mb_at_most_later": max(x[1] for x in warm),
        "mb_at_the_end": end,
        "workers_mb": [warm[0][2], warm[-1][2]],
    }


def make(path: Path, kind: str, num: int) -> Path:
    """A source of `num` images at `path`."""
    pool = [(pixels, png(pixels)) for pixels in noise(256)]
    images = islice(cycle(pool), num)
    if kind == "npz":
        return make_npz(path.with_suffix(".npz"), num)
    path.mkdir()
    if kind == "tar":
        from bench.streaming import make_shards

        make_shards(path, num, 10)
    elif kind == "folder":
        for i, (_, data) in enumerate(images):
            if i % 1000 == 0:
                (path / f"c{i // 1000:04d}").mkdir()
            (path / f"c{i // 1000:04d}" / f"{i:07d}.png").write_bytes(data)
    elif kind == "lmdb":
        import lmdb

        with lmdb.open(str(path), map_size=2**32) as made, made.begin(write=True) as transaction:
            for i, (_, data) in enumerate(images):
                transaction.put(f"{i:040x}".encode(), data)
    else:
        make_parquet(path, [data for _, data in pool], num)
    return path


def make_parquet(path: Path, pool: list[bytes], num: int) -> None:
    """Ten files of one split, each in groups of 1000 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in range(10):
        rows = range(part * num // 10, (part + 1) * num // 10)
        images = [{"bytes": pool[i % len(pool)], "path": None} for i in rows]
        table = pa.table({"image": images, "label": [i % 10 for i in rows]})
        pq.write_table(table, path / f"train-{part:05d}-of-00010.parquet", row_group_size=1000)


def make_npz(path: Path, num: int) -> Path:
    """One array of all."""
    images = np.concatenate([noise(256)] * (num // 256 + 1))[:num]
    np.savez(path, images, np.arange(num) % 10)
    return path


def noise(num: int) -> np.ndarray:
    """uint8 (num, SIDE, SIDE, 3)."""
    return np.random.default_rng(0).integers(0, 256, (num, SIDE, SIDE, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Encoded uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def memory(pid: int | None = None) -> float:
    """MB of a process's own pages: this one's, where none is given."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise AssertionError("no RssAnon")


def most_of_workers() -> float:
    """The largest process of the pool."""
    children = multiprocessing.active_children()
    return max((memory(child.pid) for child in children if child.is_alive()), default=0.0)


if __name__ == "__main__":
    main()
