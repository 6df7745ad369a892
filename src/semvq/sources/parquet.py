"""Image data sets in parquet files, in the layout of Hugging Face: on disk, or by an URL.

`hf://datasets/OWNER/NAME` is one on its hub. An image is the column of type Image, encoded bytes
with or without a path; classes are the column of type ClassLabel, whose names the schema holds.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from semvq.data.pixels import BadImageError
from semvq.data.shards import SPLITS
from semvq.sources.items import (
    START,
    Content,
    Item,
    Place,
    class_folders,
    extra,
    fingerprint,
    naming,
    numbered,
    safe,
)

BATCH, BUFFER = 32, 1 << 20  # rows and bytes read at once
WANTED = "parquet files of images"


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None finds the only one that will do."""

    image: str | None = None
    label: str | None = None


class ParquetSource:
    """Images by number, over all files of one split in the order of their names."""

    def __init__(self, source: str, files: list[str], columns: Columns) -> None:
        self.source, self.files = source, files
        self.parquet = extra("pyarrow.parquet", source)
        facts, starts = [], [0]
        for number, file in enumerate(files):
            with naming(file, WANTED), _opened(file) as handle:
                table = self.parquet.ParquetFile(handle)
                if number == 0:
                    self.image, self.label, names = _columns(source, table, columns)
                    self.folders = class_folders(names) if names else None
                missing = {self.image, self.label or self.image} - set(table.schema_arrow.names)
                if missing:
                    raise ValueError(f"{file}: expected a column '{missing.pop()}', found none")
                if (found := _class_names(table.schema_arrow, self.label)) != names:
                    raise ValueError(
                        f"{file}: expected the classes of {files[0]} ({_some(names)}), found "
                        f"{_some(found)}; give the files of one configuration, such as "
                        f"'{PurePosixPath(file).parent}/*.parquet'"
                    )
                rows, groups = table.metadata.num_rows, table.metadata
                sizes = [groups.row_group(g).total_byte_size for g in range(groups.num_row_groups)]
            facts.append(f"{PurePosixPath(file).name} {rows} {sizes}")
            starts.append(starts[-1] + rows)
        self.starts = starts
        self.num: int | None = starts[-1]
        self.fingerprint = fingerprint([*facts, self.image, self.label, *(self.folders or [])])

    def items(self, start: Place = START) -> Iterator[Item]:
        """See `Source`."""
        width = len(str(self.starts[-1]))
        for number in range(start[0], len(self.files)):
            first = start[1] if number == start[0] else 0
            for row, image, label in self._rows(self.files[number], first):
                index = self.starts[number] + row
                name, where = f"{index:0{width}d}", f"{self.source}: row {index}"
                folder = self._folder(label, where)
                yield Item(
                    f"{folder}/{name}" if folder else name,
                    (number, row + 1),
                    where,
                    partial(_content, image, where),
                )

    def _rows(self, file: str, first: int) -> Iterator[tuple[int, Any, Any]]:
        """(row, image, class) from a row on; groups of rows before it are not read."""
        wanted = [self.image, *([self.label] if self.label else [])]
        with naming(file, WANTED), _opened(file) as handle:
            table = self.parquet.ParquetFile(handle, buffer_size=BUFFER, pre_buffer=False)
            row = 0
            for group in range(table.metadata.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if row + rows <= first:
                    row += rows
                    continue
                for batch in table.iter_batches(BATCH, row_groups=[group], columns=wanted):
                    for values in batch.to_pylist():
                        if row >= first:
                            yield row, values[self.image], values.get(self.label)
                        row += 1

    def _folder(self, label: Any, where: str) -> str | None:
        """The class of a row; none where there is no column, or nothing (−1) in it."""
        if label is None or label == -1:
            return None
        if isinstance(label, str):
            return safe(label)
        with naming(where, "a class"):
            if self.folders is None:
                return numbered(label)
            if not 0 <= label < len(self.folders):
                raise ValueError(f"one of {len(self.folders)} classes, and this is {label}")
            return self.folders[label]


def parquet_files(source: str) -> dict[str, list[str]]:
    """The files of every split, by name; empty where there are none.

    A split is what the hub calls so: `train-00000-of-00005.parquet`, or a folder's name.
    """
    if "://" in source:
        if source.startswith("hf://"):
            extra("huggingface_hub", source)
        with naming(source, WANTED):
            files, path = extra("fsspec", source).core.url_to_fs(source)
            found = [path] if path.endswith(".parquet") else []
            if not found or "*" in path:
                found = files.glob(path if "*" in path else f"{path.rstrip('/')}/**/*.parquet")
            found = [files.unstrip_protocol(name) for name in found]
    else:
        path = Path(source)
        is_pattern = "*" in path.name
        places = path.parent.glob(path.name) if is_pattern else path.rglob("*.parquet")
        found = [source] if path.is_file() else [str(p) for p in places if p.suffix == ".parquet"]
    splits: dict[str, list[str]] = {}
    # `metadata.parquet` is what Hugging Face's layout for folders has beside the images
    for file in sorted(x for x in found if PurePosixPath(x).name != "metadata.parquet"):
        splits.setdefault(_split(file, source), []).append(file)
    # of two like names in the hub's conversion and beside it, the data set's own come first
    return dict(sorted(splits.items(), key=lambda pair: pair[0] != "train"))


def _split(file: str, source: str) -> str:
    # what a pattern's files have in common says no more than the folder that is a source would
    fixed = source.partition("*")[0].rpartition("/")[0] + "/" if "*" in source else source
    inside = PurePosixPath(file[len(fixed) :] if file.startswith(fixed) else file)
    name = PurePosixPath(file).stem
    if numbers := re.fullmatch(r"(\w+)-\d+-of-\d+(-\w+)?", name):
        return numbers[1]
    for part in (name, *reversed(inside.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLITS:
                return word
    return "train"


def _opened(file: str) -> Any:
    return extra("fsspec", file).open(file, "rb") if "://" in file else open(file, "rb")


def _columns(source: str, table: Any, wanted: Columns) -> tuple[str, str | None, list[str] | None]:
    """The image's column, the class's, if any, and the names of the classes, if any."""
    schema = table.schema_arrow
    features = _features(schema)
    typed = {name: found.get("_type") for name, found in features.items()}
    images = [n for n, kind in typed.items() if kind == "Image"] or [
        field.name for field in schema if _holds_bytes(field.type)
    ]
    labels = [name for name, kind in typed.items() if kind == "ClassLabel"]
    if not labels and "label" in schema.names:
        labels = ["label"]
    image = _one(source, schema.names, images, wanted.image, "--image-column")
    if image is None:
        raise ValueError(
            f"{source}: expected a column of encoded images, found {', '.join(schema.names)}"
        )
    if not _may_hold_images(schema.field(image).type):
        raise ValueError(
            f"{source}: expected encoded images in the column '{image}', found "
            f"{schema.field(image).type}; choose another with --image-column"
        )
    label = _one(source, schema.names, labels, wanted.label, "--label-column")
    return image, label, _class_names(schema, label)


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    names = _features(schema).get(label or "", {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _some(names: list[str] | None) -> str:
    """A few names of classes, for a message."""
    if names is None:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:40] for name in names[:3]) + more


def _one(
    source: str, names: list[str], found: list[str], wanted: str | None, option: str
) -> str | None:
    if wanted is not None and wanted not in names:
        raise ValueError(
            f"{option}: expected a column of {source} ({', '.join(names)}), found '{wanted}'"
        )
    if wanted is None and len(found) > 1:
        raise ValueError(
            f"{source}: expected one column to take, found {' and '.join(found)}; choose with "
            f"{option}"
        )
    return wanted or next(iter(found), None)


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's `datasets` notes of the columns; nothing where it did not write it.

    Columns of lists, which older versions note as a list, are left out.
    """
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def _holds_bytes(kind: Any) -> bool:
    types = extra("pyarrow", "").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _may_hold_images(kind: Any) -> bool:
    """Bytes, a structure of them, or text, which may be a path: each such image is named as bad."""
    types = extra("pyarrow", "").types
    return _holds_bytes(kind) or types.is_string(kind) or types.is_large_string(kind)


def _content(image: Any, where: str) -> Content:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        return data
    path = image.get("path") if isinstance(image, dict) else None
    found = f"only the path {path}" if path else "nothing"
    raise BadImageError(f"{where}: expected an image's bytes, found {found}")
