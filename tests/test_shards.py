"""Shards that change under a running stream, names of any length, and a resume inside a shard.

Order, memory and tars that are not whole at the start: `test_streaming.py`.
"""

import io
import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semvq.data.images import DataConfig, ImageSet, TrainImages, split, stream

pytestmark = pytest.mark.slow

NUM, PER_TAR, BATCH = 1200, 400, 20
CONFIG = DataConfig(resolution=16, min_crop=0.5, random_position=True, flip=True)


def tile(number: int) -> bytes:
    """A PNG whose grey level says which it is."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16), number % 251).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], layout: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=layout) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three tars; neighbours in name lie in different tars."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for part in range(NUM // PER_TAR):
        numbers = range(part, NUM, NUM // PER_TAR)
        write_tar(folder / f"part-{part}.tar", {f"c{i % 4}/{i:05d}.png": tile(i) for i in numbers})
    return folder


def number(images: ImageSet, index: int) -> int:
    return int(Path(images.name(index)).stem)


def taken(batches, num: int) -> list[dict]:
    return list(islice(batches, num))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_inside_a_shard_equals_the_tail_also_of_a_share(shards, num_workers):
    train, held_out = split(ImageSet.open(shards), 0.2)
    assert len(train) + len(held_out) == NUM
    whole = taken(stream(TrainImages(train, CONFIG, seed=3), 0, BATCH), 80)
    start = 1010  # in the second epoch, and at no batch's, shard's or epoch's edge
    again = taken(stream(TrainImages(train, CONFIG, seed=3), start, BATCH, num_workers), 20)
    for key in ("image", "label", "index"):
        expected = torch.cat([batch[key] for batch in whole])[start : start + 20 * BATCH]
        assert torch.equal(torch.cat([batch[key] for batch in again]), expected)
    for batch in again:  # what was read is what the name says, from whichever tar
        levels = [number(train, i) % 251 for i in batch["index"].tolist()]
        assert batch["image"][:, 0, 8, 8].tolist() == levels
        assert batch["label"].tolist() == [number(train, i) % 4 for i in batch["index"].tolist()]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_at_their_place(tmp_path, layout):
    names = [f"{'very' * 20}-long/{'name' * 30}.png", "Äpfel/日本.png", "a/b.png", "a b/c d.png"]
    members = {name: tile(7 * i) for i, name in enumerate(names)}
    images = ImageSet.open(write_tar(tmp_path / "x.tar", members, layout))
    assert sorted(images.name(i) for i in range(4)) == sorted(names)
    for i in range(4):
        assert int(images.load(i)[0, 0, 0]) == 7 * names.index(images.name(i))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_tar_deleted_in_mid_epoch_ends_the_run_with_its_name(shards, num_workers):
    batches = stream(TrainImages(ImageSet.open(shards), CONFIG, 0), 0, BATCH, num_workers)
    next(batches)
    (shards / "part-1.tar").unlink()
    with pytest.raises(ValueError, match=r"of 1200 images cannot .*part-1\.tar: c\d/\d+\.png: No"):
        taken(batches, 40)


def test_a_tar_cut_in_mid_epoch_names_its_members(shards):
    images = ImageSet.open(shards)
    tar = shards / "part-2.tar"
    ours = [i for i in range(NUM) if images.tars[images._rows["tar"][i]] == tar]
    cut = sorted(ours, key=lambda i: int(images._rows["at"][i]))[-3:]
    os.truncate(tar, int(images._rows["at"][cut[0]]) + 30)
    data = TrainImages(images, CONFIG, seed=0)
    lines = {line for batch in taken(stream(data, 0, BATCH), NUM // BATCH) for line in batch["bad"]}
    assert sorted(line.rpartition(": ")[0] for line in lines if "empty" in line) == [
        f"{tar}: {images.name(i)}" for i in sorted(cut[1:])
    ]
    assert len(lines) == 3 and any(images.name(cut[0]) in line for line in lines)


def test_the_order_of_names_not_of_tars_decides(shards, tmp_path):
    images = ImageSet.open(shards)
    names = [images.name(i) for i in range(NUM)]
    assert names == sorted(names)
    assert len(np.unique(images._rows["tar"][:3])) > 1
    one = write_tar(tmp_path / "one.tar", {n: tile(int(Path(n).stem)) for n in reversed(names)})
    streams = [stream(TrainImages(ImageSet.open(p), CONFIG, 5), 0, BATCH) for p in (shards, one)]
    for batch, same in zip(*(taken(s, 10) for s in streams)):
        assert torch.equal(batch["index"], same["index"])
        assert torch.equal(batch["image"], same["image"])
