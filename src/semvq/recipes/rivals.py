"""The tokenizers of Table 2 that the paper is measured against, as recipes.

Their networks and codes, with the losses and the lengths of ours, from nothing: one training loop
for all. So what they reach here is not what their authors published, with losses and schedules of
their own; those figures stand beside.
"""

from dataclasses import replace
from typing import NamedTuple

from semvq.recipes.base import tokenizer_task
from semvq.recipes.ffhq256 import ffhq256_phase1
from semvq.recipes.imagenet256 import imagenet256_phase1
from semvq.recipes.scales import Scale, mini, mini_photos, tiny
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.movq import MoVQConfig
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.rivals.residual import ResidualQuantizerConfig
from semvq.rivals.vit import ViTTokenizerConfig
from semvq.rivals.vqgan import VQGANConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.model import TokenizerConfig
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.recipe import Published, Recipe


class Rival(NamedTuple):
    """A row of Table 2: its recipe's name, the networks and codes, what its authors published."""

    name: str
    row: str
    tokenizer: TokenizerConfig
    rfid: float | None = None
    usage: float | None = None


def _plain(num_codes: int, code_dim: int) -> VectorQuantizerConfig:
    """VQGAN's codes: no usage entropy."""
    return VectorQuantizerConfig(num_codes, code_dim, entropy_weight=0.0)


def _imagenet() -> list[Rival]:
    deeper = VQGANConfig(multipliers=(1, 1, 2, 2, 4, 4), attention_side=8)
    residual = ResidualQuantizerConfig(16_384, 256, depth=16)
    return [
        Rival("vqgan", "VQGAN", VQGANConfig(quantizer=_plain(1024, 256)), 7.94, 0.44),
        Rival(
            "vqgan16384", "VQGAN, 16384 codes", VQGANConfig(quantizer=_plain(16_384, 256)),
            4.98, 0.059,
        ),
        Rival("vit_vqgan", "ViT-VQGAN", _vit(256), 1.28, 0.96),
        Rival("rq_vae", "RQ-VAE, 8 x 8 x 16", replace(deeper, quantizer=residual), 1.83),
        Rival("movq", "MoVQ, 16 x 16 x 4", _movq(), 1.12),
    ]  # fmt: skip


def _ffhq() -> list[Rival]:
    residual = ResidualQuantizerConfig(2048, 256, depth=4)
    return [
        Rival("vqgan", "VQGAN", VQGANConfig(quantizer=_plain(1024, 256)), 4.42, 0.42),
        Rival("vit_vqgan", "ViT-VQGAN", _vit(256), 3.13),
        Rival("rq_vae", "RQ-VAE, 16 x 16 x 4", VQGANConfig(quantizer=residual), 3.88),
        Rival("movq", "MoVQ, 16 x 16 x 4", _movq(), 2.26),
    ]


def _vit(side: int) -> ViTTokenizerConfig:
    return ViTTokenizerConfig(
        resolution=side, quantizer=FactorizedQuantizerConfig(8192, 256, factor_dim=32)
    )


def _movq() -> MoVQConfig:
    return MoVQConfig(quantizer=MultichannelQuantizerConfig(1024, 256, channels=4))


def _small(scale: Scale) -> list[Rival]:
    """Networks as wide and as deep as the scale's own, with as many codes."""
    own = tokenizer_task(scale.phase1).tokenizer
    assert isinstance(own, ConvTokenizerConfig)
    side, num, channels = own.resolution, own.quantizer.num_codes, own.channels
    map_side, shape = side // own.factor, own.multipliers
    vqgan = VQGANConfig(
        resolution=side, quantizer=_plain(num, own.quantizer.code_dim), channels=channels,
        multipliers=shape, attention_side=map_side,
    )  # fmt: skip
    deeper = replace(vqgan, multipliers=(*shape, shape[-1]), attention_side=map_side // 2)
    movq = MoVQConfig(
        resolution=side, quantizer=MultichannelQuantizerConfig(num, 32, channels=4),
        channels=channels, multipliers=shape, attention_side=map_side,
    )  # fmt: skip
    vit = ViTTokenizerConfig(
        resolution=side, quantizer=FactorizedQuantizerConfig(num, 32, factor_dim=8),
        patch=own.factor, num_layers=4, width=8 * 32, num_heads=8,
    )  # fmt: skip
    residual = ResidualQuantizerConfig(num, own.quantizer.code_dim, depth=4)
    return [
        Rival("vqgan", "VQGAN", vqgan),
        Rival("vit_vqgan", "ViT-VQGAN", vit),
        Rival("rq_vae", "RQ-VAE, 4 codes a place", replace(deeper, quantizer=residual)),
        Rival("movq", "MoVQ, 4 codes a place", movq),
    ]


def rivals(dataset: str) -> list[Rival]:
    """Table 2's rows but ours, for "imagenet256", "ffhq256", "mini64", "mini128" or "tiny48"."""
    makers = {"imagenet256": _imagenet, "ffhq256": _ffhq}
    if dataset in makers:
        return makers[dataset]()
    scales = {"mini64": mini, "mini128": mini_photos, "tiny48": tiny}
    return _small(scales[dataset]())


def rival_recipe(dataset: str, rival: Rival) -> Recipe:
    """The rival trained as the baseline of its scale: details' loss, our GAN term and length."""
    bases = {
        "imagenet256": imagenet256_phase1, "ffhq256": ffhq256_phase1,
        "mini64": lambda: mini().phase1, "mini128": lambda: mini_photos().phase1,
        "tiny48": lambda: tiny().phase1,
    }  # fmt: skip
    base = bases[dataset]()
    task = tokenizer_task(base)
    found = {"rFID": rival.rfid, "codebook usage": rival.usage}
    return replace(
        base,
        name=f"{dataset}_{rival.name}",
        summary=f"{dataset}: {rival.row}, trained as ours",
        task=replace(
            task, tokenizer=rival.tokenizer, perceptual=replace(task.perceptual, alpha=0.0)
        ),
        upstream=None,
        published=tuple(Published(n, v, "Table 2") for n, v in found.items() if v is not None),
    )
