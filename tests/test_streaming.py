"""A hundred thousand images in tars: flat memory, one order, resume anywhere; WebDataset's `.cls`

files; compressed, cut, empty and odd tars, each with one clear line.
"""

import bz2
import gzip
import io
import itertools
import lzma
import os
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import streaming as bench
from torch.utils.data import Dataset

from semvq.data import shards
from semvq.data.images import DataConfig, ImageSet, TrainImages, open_train_val, stream
from semvq.data.order import EpochOrder
from tests.test_images import encoded, picture, tar_of

pytestmark = pytest.mark.slow

NUM, ITEMS, FLAT_MB = 100_000, 20_000, 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    bench.make_shards(path, NUM, 10)
    return path


@pytest.fixture(scope="module")
def data(folder) -> TrainImages:
    return TrainImages(ImageSet.open(folder), bench.CONFIG, seed=0)


# --- a hundred thousand ---------------------------------------------------------------------


def test_the_index_is_small(folder):
    total = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    before = bench.memory()
    image_set = ImageSet.open(folder)
    assert len(image_set) == NUM and len(image_set.classes) == 10
    assert bench.memory() - before < 40 < total / 2, "an index, not the images"


def test_the_index_of_one_large_tar_takes_little_on_the_way(tmp_path):
    bench.make_shards(tmp_path, 10_000, 1)
    tracemalloc.start()
    ImageSet.open(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 10_000 < 700, "bytes an image; tarfile would keep a kilobyte more"


def test_memory_is_flat(data):
    found, _ = bench.read_in_fresh_process(data, ITEMS, 0)
    assert max(found["grown_mb"]) < FLAT_MB


def test_memory_of_workers_is_flat(data):
    found, _ = bench.read_in_fresh_process(data, 2000, 2)
    assert len(found["grown_mb"]) == 3, "this process and two workers"
    assert max(found["grown_mb"]) < FLAT_MB


class Leaky(TrainImages):
    """Keeps something of every image."""

    kept: list = []

    def __getitem__(self, position):
        self.kept.append(bytes([position % 251]) * 2000)  # touched, so resident
        return super().__getitem__(position)


def test_a_leak_would_be_seen(data):
    leaky = Leaky(data.image_set, data.config, 0)
    assert max(bench.read_in_fresh_process(leaky, 4000, 0)[0]["grown_mb"]) > FLAT_MB


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_one_order_for_any_number_of_workers(data):
    found = {workers: bench.read(data, 1000, workers)[1] for workers in (0, 2, 4)}
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("start", [1, 12_347, NUM - 25, 3 * NUM + 777])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_from_anywhere_is_the_tail_of_the_whole(data, start, workers):
    fresh = TrainImages(data.image_set, data.config, seed=0)
    items = [fresh[start + i] for i in range(60)]
    batches = list(itertools.islice(stream(data, start, 20, workers), 3))
    for key in ("image", "label", "index"):
        tail = [item[key] for item in items]
        expected = torch.stack(tail) if key == "image" else torch.tensor(tail)
        assert torch.equal(torch.cat([b[key] for b in batches]), expected)


def test_an_epoch_mixes_the_shards():
    order = EpochOrder(NUM, seed=0)
    indices = np.array([order.locate(i)[1] for i in range(NUM)])
    assert np.array_equal(np.sort(indices), np.arange(NUM))
    # a buffer of ten thousand would leave the first tenth of the epoch in the first fifth
    first = indices[: NUM // 10] * 10 // NUM
    assert np.bincount(first, minlength=10).min() > 900


def test_an_image_is_read_without_the_rest_of_its_tar(data, monkeypatch):
    read = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr("semvq.data.folders.open", Counting, raising=False)
    data.image_set.load(54_321)
    assert len(read) == 1 and 0 < read[0] < 5000


# --- WebDataset -----------------------------------------------------------------------------


def webdataset(path: Path, labels: list[str], first: int = 0, **more: bytes) -> Path:
    members: dict[str, bytes] = {}
    for i, label in enumerate(labels, first):
        members[f"{i:06d}.jpg"] = encoded(picture(i), "JPEG")
        members[f"{i:06d}.cls"] = label.encode()
        members[f"{i:06d}.json"] = b'{"url": "x"}'
        members[f"{i:06d}.txt"] = b"a caption"
    return tar_of(path, members | more)


def test_numbers_in_cls_files_are_labels(tmp_path):
    labels = [11, 2, 10, 0, 1, 3, 4, 5, 6, 7, 8, 9, 2]
    webdataset(tmp_path / "a-0.tar", [f"{x}\n" for x in labels[:6]])
    webdataset(tmp_path / "a-1.tar", [str(x) for x in labels[6:]], first=6)
    found = ImageSet.open(tmp_path)
    assert found.classes == tuple(str(x) for x in range(12)), "in the order of numbers"
    by_name = {found.name(i).rpartition("/")[2]: int(found.labels[i]) for i in range(len(found))}
    assert by_name == {f"{i:06d}.jpg": label for i, label in enumerate(labels)}
    names = [found.name(i).rpartition("/")[2] for i in range(len(found))]
    at = names.index("000003.jpg")
    expected = encoded(picture(3), "JPEG")
    assert found._read(at) == expected


def test_names_in_cls_files_are_classes(tmp_path):
    found = ImageSet.open(webdataset(tmp_path / "a.tar", ["owl", "cat, wild", "owl", "10"]))
    assert found.classes == ("10", "cat, wild", "owl")
    assert sorted(found.labels.tolist()) == [0, 1, 2, 2]


def test_cls_files_say_more_than_a_folder_that_holds_all(tmp_path):
    members = {"train/1.jpg": encoded(picture(), "JPEG"), "train/1.cls": b"7"}
    members |= {"train/2.seg.png": encoded(picture()), "train/2.cls": b"8"}
    assert ImageSet.open(tar_of(tmp_path / "a.tar", members)).classes == ("7", "8")


def test_held_out_shards_count_in_the_training_classes(tmp_path):
    train = webdataset(tmp_path / "train.tar", ["0", "1", "2"])
    val = webdataset(tmp_path / "val.tar", ["2", "2"])
    _, held_out = open_train_val(train, val, DataConfig(resolution=16))
    assert held_out.labels.tolist() == [2, 2]


def test_a_label_changes_the_fingerprint(tmp_path):
    a, b = (webdataset(tmp_path / f"{x}.tar", ["0", x]) for x in "12")
    assert ImageSet.open(a).fingerprint != ImageSet.open(b).fingerprint


@pytest.mark.parametrize("label", ["", "  \n", "a/b", "x" * 300, "1\n2"])
def test_a_cls_file_that_is_no_class_is_named(tmp_path, label):
    path = webdataset(tmp_path / "a.tar", ["3", label])
    with pytest.raises(ValueError, match=r"a\.tar: 000001\.cls: expected a class's number or name"):
        ImageSet.open(path)


def test_a_missing_cls_file_is_named(tmp_path):
    extra = {"lost.jpg": encoded(picture(), "JPEG")}
    path = webdataset(tmp_path / "a.tar", ["3", "4"], **extra)
    with pytest.raises(ValueError, match=r"\.cls file beside every image.*'lost\.jpg'"):
        ImageSet.open(path)


# --- tars that are not whole ----------------------------------------------------------------


@pytest.fixture
def tar(tmp_path) -> Path:
    return tar_of(tmp_path / "x.tar", {f"a/{i}.png": encoded(picture(i)) for i in range(4)})


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        ImageSet.open(path)
    line = str(error.value)
    assert "\n" not in line and line.count("expected") == 1
    assert path.name in line
    return line


COMPRESSORS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_tar_says_how(tar, kind):
    tar.write_bytes(COMPRESSORS[kind](tar.read_bytes()))
    assert f"compressed by {kind}; decompress it once" in refused(tar)


def test_a_folder_of_compressed_tars_says_so(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-0.tar.gz").write_bytes(b"\x1f\x8b")
    assert "found none but train-0.tar.gz; decompress it once" in refused(tmp_path / "shards")


def boundaries(tar: Path) -> dict[str, int]:
    """Where to cut: inside data, between members, inside a header."""
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1]
    return {"data": last.offset_data + 30, "edge": last.offset, "header": last.offset + 100}


@pytest.mark.parametrize("where", ["data", "edge", "header"])
def test_a_cut_tar_is_refused_wherever_it_was_cut(tar, where):
    os.truncate(tar, boundaries(tar)[where])
    assert "expected a whole, uncompressed tar file, found" in refused(tar)


def test_a_tar_of_nothing_is_refused_in_any_form(tmp_path):
    (tmp_path / "zero.tar").write_bytes(b"")
    assert "empty" in refused(tmp_path / "zero.tar")
    assert "empty" in refused(tar_of(tmp_path / "blank.tar", {}))
    assert "found none (.jpg" in refused(tar_of(tmp_path / "text.tar", {"a.txt": b"hello"}))
    # beside whole ones, too: it stands for a download that failed
    (tmp_path / "set").mkdir()
    tar_of(tmp_path / "set" / "s-0.tar", {"a/1.png": encoded(picture())})
    tar_of(tmp_path / "set" / "s-1.tar", {})
    with pytest.raises(ValueError, match=r"s-1\.tar: .*an empty one"):
        ImageSet.open(tmp_path / "set")


def test_a_damaged_header_loses_no_images_in_silence(tar):
    at = boundaries(tar)["edge"]
    data = bytearray(tar.read_bytes())
    data[at + 20] ^= 0xFF
    tar.write_bytes(data)
    assert f"a damaged header at byte {at}" in refused(tar)


def test_random_damage_never_loses_an_image_in_silence(tar):
    """A header has a checksum, and what is no header is the image's own affair."""
    chance, whole = random.Random(0), tar.read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        tar.write_bytes(data)
        try:
            assert len(ImageSet.open(tar)) == 4
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{tar}: expected") and "\n" not in str(error)
    assert refused > 30


def test_tars_joined_by_cat_are_refused(tar):
    tar.write_bytes(tar.read_bytes() * 2)
    assert "several tars in one" in refused(tar)


def odd_tar(path: Path, **changes) -> Path:
    member = tarfile.TarInfo("a/0.png")
    for name, value in changes.items():
        setattr(member, name, value)
    data = encoded(picture())
    member.size = len(data) if member.isreg() else 0
    with tarfile.open(path, "w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "x" * 2000 + ".jpg"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    assert "expected names" in refused(odd_tar(tmp_path / "a.tar", name=name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path, kind):
    path = odd_tar(tmp_path / "a.tar", type=kind, linkname="/etc/passwd")
    assert "found the link 'a/0.png'; make the tar anew with --dereference" in refused(path)


def test_other_kinds_of_members_are_no_images(tmp_path):
    path = odd_tar(tmp_path / "a.tar", type=tarfile.FIFOTYPE)
    assert "found none" in refused(path)


@pytest.mark.parametrize("size", [-512, 2**60, 10**12])
def test_sizes_beyond_the_file_are_refused(tmp_path, size):
    header = tarfile.TarInfo("a/0.png")
    header.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert f"a member of {size} bytes" in refused(path)


def test_endless_nesting_of_headers_is_refused(tmp_path):
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 6
    block = long_name.tobuf(tarfile.GNU_FORMAT) + b"a.png\0".ljust(512, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(block * 5000 + bytes(1024))
    refused(path)


# --- folders --------------------------------------------------------------------------------


def test_links_in_a_folder_end(tmp_path):
    (tmp_path / "a").mkdir()
    picture().save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    found = ImageSet.open(tmp_path)
    assert [found.name(i) for i in range(len(found))] == ["a/0.png", "b/0.png"]


def test_a_pipe_is_no_image_and_a_link_to_nothing_is_a_bad_one(tmp_path):
    picture().save(tmp_path / "0.png")
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    found = ImageSet.open(tmp_path)
    assert [found.name(i) for i in range(len(found))] == ["0.png", "2.png"]
    with pytest.raises(ValueError, match=r"2\.png: No such file"):
        found.load(1)


def test_the_limits_are_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_NAME", 5)
    with pytest.raises(ValueError, match="at most 5 bytes, found 'a/0.png…'"):
        ImageSet.open(odd_tar(tmp_path / "a.tar"))


# --- workers --------------------------------------------------------------------------------


class Sized(Dataset):
    """Its worker dies, or takes its time, at one item."""

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what = at, what

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, position: int) -> dict:
        if position == self.at and self.what == "die":
            os._exit(1)
        if position == self.at and self.what == "wait":
            time.sleep(2.5)
        return {"index": position}


def test_a_death_is_raised_where_a_batch_is_waited_for():
    """Not in the midst of the step that runs meanwhile, whose error nobody would expect."""
    batches = stream(Sized(10, "die"), 0, 2, num_workers=1)
    next(batches)
    end = time.monotonic() + 3
    while time.monotonic() < end:  # a training step, in which the worker dies
        time.sleep(0.01)
    began = time.monotonic()
    with pytest.raises(OSError, match="worker died or hung.*exited unexpectedly"):
        list(batches)
    assert time.monotonic() - began < 10


def test_a_slow_worker_is_waited_for():
    """Longer than a look, shorter than the limit."""
    batches = stream(Sized(4, "wait"), 0, 2, num_workers=1)
    found = torch.cat([batch["index"] for batch in itertools.islice(batches, 6)])
    assert found.tolist() == list(range(12))
