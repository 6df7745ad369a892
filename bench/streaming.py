"""Many images in tar files: how long the index takes, how fast they stream, and in what memory.

    python bench/streaming.py --images 100000 --items 20000

Makes shards of tiny images in a temporary folder, opens them and reads a training stream with 0, 2
and 4 workers. Prints JSON: seconds to index, images per second, and for every process how far its
memory grew over `--items` images after as many to warm up. The order must be the same each time.
"""

import argparse
import io
import json
import multiprocessing
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from semvq.data.images import DataConfig, ImageSet, TrainImages, stream

SIDE = 32  # decoded, 100,000 of them are more than a process may keep
CONFIG = DataConfig(resolution=16, min_crop=0.5, random_position=True, flip=True)
BATCH = 50


def main() -> None:
    """See the head of this file."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--images", type=int, default=100_000)
    p.add_argument("--items", type=int, default=20_000)
    p.add_argument("--tars", type=int, default=10)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        make_shards(Path(folder), options.images, options.tars)
        facts = {"images": options.images, "make_seconds": seconds_since(began)}
        before, began = memory(), time.perf_counter()
        image_set = ImageSet.open(folder)
        facts |= {"index_seconds": seconds_since(began), "index_mb": memory() - before}
        data = TrainImages(image_set, CONFIG, seed=0)
        orders = set()
        for workers in (0, 2, 4):
            found, order = read_in_fresh_process(data, options.items, workers)
            facts[f"workers_{workers}"] = found
            orders.add(order)
        facts["same_order"] = len(orders) == 1
        print(json.dumps(facts, indent=1))
        assert facts["same_order"], "the order depends on the number of workers"


def make_shards(folder: Path, num: int, num_tars: int, classes: int = 10) -> None:
    """`num` images `<class>/<number>.<ext>` in tars of equal size; the bytes repeat, names don't.

    Headers are written by hand: a second for 100,000.
    """
    pool = images(64)
    per_tar = num // num_tars
    for tar in range(num_tars):
        with open(folder / f"shard-{tar:04d}.tar", "wb") as file:
            for i in range(tar * per_tar, (tar + 1) * per_tar):
                data = pool[i % len(pool)]
                header = tarfile.TarInfo(f"c{i % classes}/{i:07d}.{('png', 'jpg')[i % 2]}")
                header.size = len(data)
                file.write(header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
            file.write(bytes(1024))


def images(num: int) -> list[bytes]:
    """Encoded images of noise, PNG and JPEG in turn."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(num):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, ("PNG", "JPEG")[i % 2])
        found.append(buffer.getvalue())
    return found


def read_in_fresh_process(data: TrainImages, items: int, workers: int) -> tuple[dict, str]:
    """`read` where no earlier work has left freed memory, in which a leak could grow unseen."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(read, data, items, workers).result()


def read(data: TrainImages, items: int, workers: int) -> tuple[dict, str]:
    """Speed, growth of every process's memory in MB, and a hash of all that came."""
    batches = stream(data, 0, BATCH, workers)
    digest = sha256()

    def consume() -> float:
        began = time.perf_counter()
        for batch in islice(batches, items // BATCH):
            digest.update(batch["index"].numpy().tobytes() + batch["image"].numpy().tobytes())
        return items / (time.perf_counter() - began)

    consume()
    before, rate, after = processes(), consume(), processes()
    grown = [round(after[pid] - before[pid], 2) for pid in after]
    return {"images_per_second": round(rate), "grown_mb": grown}, digest.hexdigest()


def processes() -> dict[int | None, float]:
    """Memory in MB of this process (None) and of its workers."""
    workers = [child.pid for child in multiprocessing.active_children()]
    return {pid: memory(pid) for pid in (None, *workers)}


def memory(pid: int | None = None) -> float:
    """Resident MB of a process: this one, where none is given."""
    statm = Path(f"/proc/{pid or 'self'}/statm").read_text()
    return round(int(statm.split()[1]) * 4096 / 1e6, 2)


def seconds_since(began: float) -> float:
    """To a hundredth."""
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    main()
