"""Which kind of source a path or an URL is."""

import re
from pathlib import Path

from semvq.data.shards import SPLITS, find_tars, is_image
from semvq.sources.databases import LmdbSource
from semvq.sources.folders import FolderSource
from semvq.sources.items import Source
from semvq.sources.npz import NpzSource
from semvq.sources.parquet import Columns, ParquetSource, parquet_files
from semvq.sources.tars import TarSource, expand

KINDS = (
    "a folder of images or of class folders, tar files, parquet files, an LMDB folder, an .npz, "
    "or an URL of tar or parquet files"
)


def open_sources(source: str, columns: Columns) -> dict[str, Source]:
    """The source behind a path, pattern or URL, by split; the split is "" where it says none.

    ValueError, which names it, where it is none of the kinds, or a package is missing.
    """
    if _is_tars(source):
        return {"": TarSource([file for x in expand(source) for file in _tars(x)])}
    if "://" in source or ".parquet" in Path(source).name:
        return _parquet(source, columns)
    path = Path(source)
    if not path.exists() and not set(path.name) & set("*?["):
        advice = f"; for one on a hub give hf://datasets/{source}" if _is_hub_name(source) else ""
        raise ValueError(f"{source}: expected {KINDS}, found nothing there{advice}")
    if path.suffix == ".npz":
        return {"": NpzSource(path)}
    if path.name == "data.mdb":
        return {"": LmdbSource(path.parent)}
    if (path / "data.mdb").exists():
        return {"": LmdbSource(path)}
    if tars := find_tars(path):
        return {"": TarSource([str(tar) for tar in tars])}
    if databases := sorted(path.glob("*/data.mdb")):
        some = " and ".join(str(x.parent) for x in databases[:2])
        raise ValueError(f"{source}: expected one database, found {some}; give one of them")
    if not (found := _parquet(source, columns)):
        return {split: FolderSource(folder) for split, folder in _split_folders(path).items()}
    if path.is_dir() and (image := next(filter(_is_image_file, path.rglob("*")), None)):
        raise ValueError(
            f"{source}: expected parquet files or images, found both ({image.name}); give the "
            f"parquet files by a pattern, such as '{source}/*.parquet', or a folder of images alone"
        )
    return found


def one_source(source: str, split: str, columns: Columns) -> Source:
    """The source for a split that was named. ValueError where it holds others alone."""
    found = open_sources(source, columns)
    if len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(
            f"{source}: expected one split or one called '{split}', found {', '.join(found)}; "
            "give one of them, by its folder or a pattern of its files"
        )
    return found[split]


def _parquet(source: str, columns: Columns) -> dict[str, Source]:
    splits = parquet_files(source)
    if not splits and ("://" in source or ".parquet" in source):
        raise ValueError(f"{source}: expected parquet files, or tar files (.tar), found none")
    return {split: ParquetSource(source, files, columns) for split, files in splits.items()}


def _is_tars(source: str) -> bool:
    return source.endswith(".tar") and ("://" in source or bool(re.search(r"\{.*\}", source)))


def _tars(name: str) -> list[str]:
    """The tars of one expanded name: an URL itself, or what is there by a path or pattern."""
    if "://" in name:
        return [name]
    if not (found := find_tars(Path(name))):
        raise ValueError(f"{name}: expected a tar file, found none there")
    return [str(tar) for tar in found]


def _split_folders(path: Path) -> dict[str, Path]:
    """The folders `train`, `val`, … of a data set that has no others; else itself, as ""."""
    inside = path.iterdir() if path.is_dir() else ()
    folders = sorted(x for x in inside if x.is_dir() and not x.name.startswith("."))
    if len(folders) < 2 or not {x.name.lower() for x in folders} <= SPLITS:
        return {"": path}
    folders.sort(key=lambda x: not x.name.lower().startswith("train"))
    return {x.name.lower(): x for x in folders}


def _is_image_file(path: Path) -> bool:
    return is_image(path.name) and path.is_file()


def _is_hub_name(source: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source))
