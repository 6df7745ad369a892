"""The same tiny photos as every kind of source that `semvq prepare` reads."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semvq.data.images import ImageSet
from tests.toy import photos


def class_folders(place: Path) -> str:
    return str(photos(place / "PHOTOS"))


def plain_folder(place: Path) -> str:
    (place / "PLAIN").mkdir()
    for name, data in encoded(place):
        (place / "PLAIN" / name.replace("/", "-")).write_bytes(data)
    return str(place / "PLAIN")


def original(place: Path) -> ImageSet:
    folder = place / "photos"
    return ImageSet.open(folder if folder.exists() else photos(folder))


def encoded(place: Path) -> list[tuple[str, bytes]]:
    """Names `<class>/<file>` and files of the photos, in order."""
    images = original(place)
    return [
        (images.name(i), (images.root / images.name(i)).read_bytes()) for i in range(len(images))
    ]


def labels(place: Path) -> tuple[list[str], list[int]]:
    """The class names, and the number of every photo's class."""
    names = [name.partition("/")[0] for name, _ in encoded(place)]
    classes = sorted(set(names))
    return classes, [classes.index(name) for name in names]


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shards(place: Path) -> list[bytes]:
    """Two WebDataset shards with `.cls` files."""
    members = []
    for i, ((_, data), label) in enumerate(zip(encoded(place), labels(place)[1])):
        members += [(f"{i:06d}.png", data), (f"{i:06d}.cls", str(label).encode())]
        members += [(f"{i:06d}.json", b"{}")]
    return [tar_bytes(members[:36]), tar_bytes(members[36:])]


def tars(place: Path) -> str:
    (place / "tars").mkdir()
    (place / "tars" / "photos.tar").write_bytes(tar_bytes(encoded(place)))
    return str(place / "tars")


def web_shards(place: Path) -> str:
    for number, data in enumerate(shards(place)):
        (place / f"web-{number:03d}.tar").write_bytes(data)
    return str(place / "web-{000..001}.tar")


def remote_shards(place: Path) -> str:
    for number, data in enumerate(shards(place)):
        with fsspec.open(f"memory://{place.name}/web-{number:03d}.tar", "wb") as file:
            file.write(data)
    return f"memory://{place.name}/web-{{000..001}}.tar"


def table(place: Path, rows: slice = slice(None)) -> pa.Table:
    """As `datasets` writes it: bytes and path, and the names of the classes in the schema."""
    names, numbers = labels(place)
    images = [{"bytes": data, "path": None} for _, data in encoded(place)][rows]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    found = pa.table({"image": images, "label": numbers[rows]})
    noted = json.dumps({"info": {"features": features}})
    return found.replace_schema_metadata({"huggingface": noted})


def parquet(place: Path) -> str:
    (place / "hub" / "data").mkdir(parents=True)
    for part in range(2):
        name = f"train-0000{part}-of-00002.parquet"
        rows = table(place, slice(part * 12, part * 12 + 12))
        pq.write_table(rows, place / "hub" / "data" / name, row_group_size=5)
    return str(place / "hub")


def remote_parquet(place: Path) -> str:
    with fsspec.open(f"memory://{place.name}/hub/train/0000.parquet", "wb") as file:
        pq.write_table(table(place), file)
    return f"memory://{place.name}/hub"


def database(place: Path) -> str:
    path = place / "church_outdoor_train_lmdb"
    with lmdb.open(str(path), map_size=2**24) as made, made.begin(write=True) as transaction:
        for i, (_, data) in enumerate(encoded(place)):
            transaction.put(f"{i:040x}".encode(), data)
    return str(path)


def pixels(place: Path) -> np.ndarray:
    """uint8 (24, 20, 24, 3)."""
    images = original(place)
    return np.stack([images.load(i) for i in range(len(images))])


def npz(place: Path) -> str:
    np.savez(place / "photos.npz", pixels(place), np.array(labels(place)[1]))
    return str(place / "photos.npz")


def named_npz(place: Path) -> str:
    names, numbers = labels(place)
    np.savez_compressed(
        place / "named.npz", images=pixels(place), labels=np.array([names[i] for i in numbers])
    )
    return str(place / "named.npz")


COLOURS = ("blue", "green", "red")
NUMBERS = ("00000", "00001", "00002")
# how to make it, and the classes that it has
SOURCES = {
    "class folders": (class_folders, COLOURS),
    "plain folder": (plain_folder, ()),
    "tars": (tars, COLOURS),
    "WebDataset": (web_shards, NUMBERS),
    "WebDataset by URL": (remote_shards, NUMBERS),
    "parquet": (parquet, COLOURS),
    "parquet by URL": (remote_parquet, COLOURS),
    "LMDB": (database, ()),
    "npz": (npz, NUMBERS),
    "npz with names": (named_npz, COLOURS),
}
