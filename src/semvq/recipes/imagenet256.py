"""The paper's ImageNet 256x256 path: tokenizer phases 1 and 2, AR and NAR, each in two sizes.

Steps, rates and betas are the paper's (Sec. 4.1, 4.3); what it leaves open is decided in
docs/deviations.md (D7, D8, D10, D14). Nothing here has been trained by us yet.
"""

from dataclasses import replace

from semvq.data.images import DataConfig
from semvq.generators.ar import ARConfig
from semvq.generators.base import GeneratorConfig
from semvq.generators.nar import NARConfig
from semvq.losses.discriminators import StyleGANDiscriminatorConfig
from semvq.losses.perceptual import PerceptualConfig
from semvq.recipes.base import (
    PHASE1,
    PHASE2,
    TRANSFORMER_IMAGENET,
    decoder_fids,
    decoder_phase,
)
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.adversary import AdversarialConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Published, Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

ADAM = OptimConfig(learning_rate=1e-4, beta1=0.9, beta2=0.99, warmup="5k steps")
DATA = DataConfig(resolution=256, min_crop=0.8, random_position=True, flip=True)


def imagenet256_phase1() -> Recipe:
    """Sec. 3.4, phase 1: the whole 54.5M tokenizer, alpha = 1, 500k iterations."""
    return Recipe(
        name="imagenet256_phase1",
        summary="ImageNet tokenizer, phase 1: semantic compression (alpha 1)",
        task=TokenizerTaskConfig(
            tokenizer=ConvTokenizerConfig(
                resolution=256, quantizer=VectorQuantizerConfig(num_codes=1024, code_dim=256)
            ),
            data=DATA,
            optim=ADAM,
            perceptual=PerceptualConfig(alpha=1.0, form="paper", logits_from="vgg16-full"),
            adversarial=AdversarialConfig(
                discriminator=StyleGANDiscriminatorConfig(),
                optim=replace(ADAM, beta1=0.0),
                objective="logistic",
                weight=0.1,
                start="50k steps",
                warmup="2k steps",
                ramp="10k steps",
                r1_weight=10.0,
            ),
        ),
        loop=LoopConfig(duration=PHASE1, batch_size=256),
        published=(
            Published("codebook usage", 1.00, "Table 2"),
            *decoder_fids(ar=7.83, nar=5.31),
        ),
    )


def imagenet256_phase2() -> Recipe:
    """Sec. 3.4, phase 2: frozen codes, attention decoder (57.9M), alpha = 0, 200k iterations."""
    return decoder_phase(
        imagenet256_phase1(),
        name="imagenet256_phase2",
        summary="ImageNet tokenizer, phase 2: details, decoder only (alpha 0)",
        duration=PHASE2,
        learning_rate=5e-5,
        attention_pairs=1,
        published=(Published("rFID", 1.99, "Table 2"), *decoder_fids(ar=7.55, nar=4.99)),
    )


def _generator(
    name: str,
    summary: str,
    model: GeneratorConfig,
    optim: OptimConfig,
    published: tuple[Published, ...],
) -> Recipe:
    """Sec. 4.3: 300 epochs at a rate of 1e-4, on codes of the phase-1 tokenizer."""
    return Recipe(
        name=name,
        summary=summary,
        task=GeneratorTaskConfig(generator=model, optim=optim, data=DATA, num_views=10),
        loop=LoopConfig(duration=TRANSFORMER_IMAGENET, batch_size=256),
        upstream="imagenet256_phase1",
        published=published,
    )


def _table4(fid: float, inception_score: float) -> tuple[Published, ...]:
    return (Published("FID", fid, "Table 4"), Published("IS", inception_score, "Table 4"))


def _ar(width: int, num_heads: int) -> ARConfig:
    return ARConfig(
        num_layers=24, width=width, num_heads=num_heads, num_codes=1024,
        grid_height=16, grid_width=16, num_classes=1000,
    )  # fmt: skip


def _nar(width: int) -> NARConfig:
    return NARConfig(
        num_layers=24, width=width, num_heads=16, num_codes=1024,
        grid_height=16, grid_width=16, num_classes=1000,
    )  # fmt: skip


GPT_ADAM = replace(ADAM, beta2=0.95, weight_decay=0.01)
MASKGIT_ADAM = replace(ADAM, beta2=0.96, weight_decay=0.045)


def imagenet256_ar() -> Recipe:
    """Table 4, SeQ-GAN + AR: 24 layers of width 768."""
    return _generator(
        "imagenet256_ar", "class-conditional AR transformer, 24 x 768",
        _ar(768, 12), GPT_ADAM, _table4(7.55, 121.3),
    )  # fmt: skip


def imagenet256_ar_l() -> Recipe:
    """Table 4, SeQ-GAN + AR-L: 24 layers of width 1024."""
    return _generator(
        "imagenet256_ar_l", "class-conditional AR transformer, 24 x 1024",
        _ar(1024, 16), GPT_ADAM, _table4(6.25, 140.9),
    )  # fmt: skip


def imagenet256_nar() -> Recipe:
    """Table 4, SeQ-GAN + NAR: 24 layers of width 768."""
    return _generator(
        "imagenet256_nar", "class-conditional NAR transformer, 24 x 768",
        _nar(768), MASKGIT_ADAM, _table4(4.99, 189.1),
    )  # fmt: skip


def imagenet256_nar_l() -> Recipe:
    """Table 4, SeQ-GAN + NAR-L: 24 layers of width 1024."""
    return _generator(
        "imagenet256_nar_l", "class-conditional NAR transformer, 24 x 1024",
        _nar(1024), MASKGIT_ADAM, _table4(4.55, 200.4),
    )  # fmt: skip
