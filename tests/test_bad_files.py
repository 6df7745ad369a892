"""Bad files among many good ones: the run goes on and names each, or ends and says why.

What single files hold: `test_images.py` and `test_bad_images.py`.
"""

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from semvq.data import order
from semvq.data.images import DataConfig, ImageSet, TrainImages, open_train_val, stream
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_autoencoder

pytestmark = pytest.mark.slow

NUM_GOOD, BATCH = 1300, 64
CONFIG = DataConfig(resolution=16, min_crop=0.8, random_position=True)
ROOT = Path(__file__).parent.parent


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(side: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file of 8-bit RGB with that header, whatever its compressed data are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


BAD = {
    "0100-empty.jpg": b"",
    "0200-cut.jpg": encoded(noise(), "JPEG")[:-500],
    "0201-cut.png": encoded(noise())[:-500],  # two in a row
    "0300-text.jpg": b"this is no picture at all\n",
    "0400-random.png": np.random.default_rng(1).bytes(3000),
    "0500-icon.png": encoded(noise(), "ICO"),
    "0600-small.png": encoded(noise(7)),
    "0700-long.png": encoded(Image.new("RGB", (400, 20))),
    "0800-float.tif": encoded(Image.new("F", (20, 20)), "TIFF"),
    "0900-60-megapixels.png": png(10_000, 6_000),
    "1000-script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n",
    "1299-deleted.png": encoded(noise(20)),  # the last name: the next good one is the first
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """1,300 good and 12 bad images; one of the bad ones is deleted by `opened`."""
    path = tmp_path / "photos"
    path.mkdir()
    good = encoded(noise(20))
    for i in range(NUM_GOOD):
        (path / f"{i:04d}.png").write_bytes(good)
    for name, data in BAD.items():
        (path / name).write_bytes(data)
    return path


def opened(folder: Path) -> ImageSet:
    images = ImageSet.open(folder)
    assert len(images) == NUM_GOOD + len(BAD)
    (folder / "1299-deleted.png").unlink()
    return images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_and_more_names_every_bad_file(folder, num_workers):
    images = opened(folder)
    data = TrainImages(images, CONFIG, seed=0)
    num = 2 * len(images) // BATCH + 1
    batches = list(islice(stream(data, 0, BATCH, num_workers), num))
    assert all(len(batch["image"]) == BATCH for batch in batches)
    assert not {images.name(i) for b in batches for i in b["index"].tolist()} & set(BAD)
    # the same words each time, or the journal would name a file twice
    found = {line for batch in batches for line in batch["bad"]}
    assert sorted(line.split(": ")[0] for line in found) == [str(folder / n) for n in sorted(BAD)]
    assert all("\n" not in line and len(line.split(": ")[1]) > 5 for line in found)


@pytest.mark.slow
def test_a_training_goes_to_its_end_and_names_each_once(folder, tmp_path, monkeypatch, capfd):
    def open_and_delete(*arguments):
        sets = open_train_val(*arguments)
        (folder / "1299-deleted.png").unlink()
        return sets

    monkeypatch.setattr("semvq.training.tokenizer_task.open_train_val", open_and_delete)
    num = 2 * (NUM_GOOD + len(BAD)) // BATCH + 1
    recipe = toy_autoencoder(duration=f"{num} steps", batch_size=BATCH)
    val = photos(tmp_path / "val", per_class=2)
    assert train_recipe(recipe, tmp_path / "run", data=folder, val=val, device="cpu") is None
    assert (tmp_path / "run" / "finished").exists()
    named = re.findall(r"^skipped an unreadable image: (\S+): .+ \((\d+) so far\)$",
                       capfd.readouterr().err, re.MULTILINE)  # fmt: skip
    assert sorted(path for path, _ in named) == [str(folder / name) for name in sorted(BAD)]
    assert [int(count) for _, count in named] == list(range(1, len(BAD) + 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_per_cent_bad_end_the_run_with_their_number(folder, num_workers):
    for i in range(26 - len(BAD)):
        (folder / f"{50 * i + 7:04d}.png").write_bytes(b"spoilt")
    data = TrainImages(opened(folder), CONFIG, seed=0)
    with pytest.raises(ValueError) as error:
        list(islice(stream(data, 0, BATCH, num_workers), 2 * len(data) // BATCH))
    found = re.match(r"(\d+) of 1312 images cannot be read, more than 1%: ", str(error.value))
    assert found and 14 <= int(found[1]) <= 26
    assert str(error.value).endswith("repair or remove them") and "\n" not in str(error.value)


# --- a header that promises too much --------------------------------------------------------

PEAK = r"""
import re, sys
from pathlib import Path
from semvq.data import pixels

def peak():  # getrusage would start from the peak of the process that started this one
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

pixels.MAX_PIXELS = int(sys.argv[2])
data = Path(sys.argv[1]).read_bytes()
before = peak()
try:
    pixels.decode(data, "x")
except pixels.BadImageError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def peak_of_decoding(path: Path, max_pixels: int) -> tuple[float, str]:
    """Extra MB of a process at its peak, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(max_pixels)],
        capture_output=True, text=True, check=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    return float(done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_flat_giant_is_refused_before_it_takes_memory(tmp_path):
    squeeze = zlib.compressobj(1)
    rows = [squeeze.compress(bytes(1 + 3 * 10_000)) for _ in range(10_000)]
    data = png(10_000, 10_000, b"".join(rows) + squeeze.flush())
    (tmp_path / "flat.png").write_bytes(data)
    extra, said = peak_of_decoding(tmp_path / "flat.png", 50_000_000)
    assert "expected at most 50000000 pixels, found 10000x10000" in said
    assert extra < 100
    # the measurement sees what the refusal saves
    assert peak_of_decoding(tmp_path / "flat.png", 10**9)[0] > 250


# --- what goes wrong while a stream is read -------------------------------------------------


class Faulty(Dataset):
    """Good for some batches; then its worker leaves, or sleeps for ten minutes."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 100

    def __getitem__(self, position: int) -> dict:
        if position >= 20 and self.fault == "die":
            os._exit(1)
        if position >= 20 and self.fault == "hang":
            time.sleep(600)
        return {"index": position}


@pytest.mark.parametrize(
    ("fault", "named"),
    [("die", "exited unexpectedly"), pytest.param("hang", "timed out", marks=pytest.mark.slow)],
)
def test_a_worker_that_fails_in_the_middle_is_named(fault, named, monkeypatch):
    assert order.WORKER_TIMEOUT <= 60
    monkeypatch.setattr(order, "WORKER_TIMEOUT", 1.0)
    start, seen = time.monotonic(), []
    with pytest.raises(OSError, match=f"worker died or hung.*{named}.*try fewer workers"):
        for batch in stream(Faulty(fault), 0, 4, num_workers=2):
            seen += batch["index"].tolist()
    # torch may notice a death before it hands over what is ready
    assert seen == list(range(len(seen))) and len(seen) <= 20
    if fault == "hang":
        assert len(seen) == 20
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_deleted_in_mid_epoch_is_named_and_replaced(folder, num_workers):
    for name in BAD:
        (folder / name).unlink()
    images = ImageSet.open(folder)
    data = TrainImages(images, CONFIG, seed=0)
    batches = stream(data, 0, BATCH, num_workers)
    first = next(batches)
    gone = data._order.locate(15 * BATCH)[1]  # far behind what the workers fetch ahead
    (folder / images.name(gone)).unlink()
    rest = list(islice(batches, 19))
    assert not first["bad"] and all(len(batch["image"]) == BATCH for batch in rest)
    assert [batch["bad"] for batch in rest if batch["bad"]] == [
        (f"{folder / images.name(gone)}: No such file or directory",)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_deleted_in_mid_epoch_ends_the_run(folder, num_workers):
    batches = stream(TrainImages(ImageSet.open(folder), CONFIG, 0), 0, BATCH, num_workers)
    next(batches)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="cannot be read.*No such file or directory"):
        list(islice(batches, 40))


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for path in (tmp_path / "photos" / "cat", tmp_path / "photos"):
        with pytest.raises(ValueError, match=f"^expected images at {path}, found none .*jpg"):
            ImageSet.open(path)
