"""The demo's path on the packaged fruit photos: small enough for two CPU cores.

It follows the paper's method at a hundredth of its size; every number below was chosen by runs
that EXPERIMENTS.md records.
"""

from dataclasses import replace

from semvq.data.images import DataConfig
from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig
from semvq.losses.discriminators import PatchGANConfig
from semvq.recipes.base import (
    SMALL_CODE_DIM,
    SMALL_PERCEPTUAL,
    autoencoder_phase,
    decoder_phase,
    small_phase1,
    small_tokenizer_optim,
    small_transformer_optim,
)
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Recipe

REFERENCE_MINUTES = 9.0  # what the durations below and the sampling take on two cores
SAMPLING = {"guidance": 3.0, "top_k": 100}  # of the demo's samples, AR and NAR

RESOLUTION = 48
GRID = 12
NUM_CODES = 512
NUM_CLASSES = 14
DECODER_IMAGES = "1600 images"  # phase 2 and its control see equally many
DATA = DataConfig(resolution=RESOLUTION, min_crop=0.8, random_position=True, flip=True)
LOOP = LoopConfig(  # the transformers' length; the tokenizer's stages have their own
    duration="9600 images",
    batch_size=16,
    ema_decay=0.99,
    log_every="2% of the run",
    evaluate_every="25% of the run",
    save_every="10% of the run",
)


def fruit_autoencoder() -> Recipe:
    """What phase 1 starts from: the same network without quantization, under L1 alone.

    An image costs a quarter of what it costs in phase 1 here, and the codebook starts from latents
    that know colour already.
    """
    return autoencoder_phase(
        fruit_phase1(),
        name="fruit_autoencoder",
        summary="demo warm-up: an autoencoder without codes",
        duration="5000 images",
    )


def fruit_phase1() -> Recipe:
    """Phase 1 (Sec. 3.4): the whole tokenizer, alpha = 1, perceptual layers balanced (D5)."""
    return small_phase1(
        "fruit",
        "demo tokenizer, phase 1: semantic compression (alpha 1)",
        tokenizer=ConvTokenizerConfig(
            resolution=RESOLUTION,
            channels=32,
            multipliers=(1, 2, 2),
            blocks_per_level=1,
            middle_blocks=1,
            quantizer=VectorQuantizerConfig(
                NUM_CODES, SMALL_CODE_DIM, entropy_weight=0.2, entropy_temperature=0.1
            ),
        ),
        discriminator=PatchGANConfig(channels=32, num_layers=2),
        discriminator_optim=OptimConfig(learning_rate=1e-3, beta1=0.5, beta2=0.99),
        optim=small_tokenizer_optim(1e-3),
        perceptual=replace(SMALL_PERCEPTUAL, logits_size=128),
        loop=replace(LOOP, duration="2400 images", batch_size=8),
    )


def fruit_phase2() -> Recipe:
    """Phase 2 (Sec. 3.4): codes frozen, attention decoder, alpha = 0."""
    return decoder_phase(
        fruit_phase1(),
        name="fruit_phase2",
        summary="demo tokenizer, phase 2: details, attention decoder (alpha 0)",
        duration=DECODER_IMAGES,
        learning_rate=5e-4,
        attention_pairs=1,
    )


def fruit_phase2_control() -> Recipe:
    """As phase 2 on equally many images, without attention: what the attention itself brings."""
    return decoder_phase(
        fruit_phase1(),
        name="fruit_phase2_control",
        summary="demo control: phase 2 without attention",
        duration=DECODER_IMAGES,
        learning_rate=5e-4,
        attention_pairs=0,
    )


def fruit_ar() -> Recipe:
    """AR transformer on the phase-1 codes, class-conditional."""
    model = ARConfig(
        num_layers=2, width=256, num_heads=8, dropout=0.0, num_codes=NUM_CODES,
        grid_height=GRID, grid_width=GRID, num_classes=NUM_CLASSES, conditioning_dropout=0.1,
    )  # fmt: skip
    return Recipe(
        name="fruit_ar",
        summary="demo AR transformer, class-conditional",
        task=GeneratorTaskConfig(model, small_transformer_optim(2e-3), DATA, num_views=6),
        loop=LOOP,
        upstream="fruit_phase1",
    )


def fruit_nar() -> Recipe:
    """NAR transformer on the phase-1 codes, class-conditional."""
    model = NARConfig(
        num_layers=2, width=256, num_heads=8, dropout=0.0, num_codes=NUM_CODES,
        grid_height=GRID, grid_width=GRID, num_classes=NUM_CLASSES, conditioning_dropout=0.1,
    )  # fmt: skip
    return Recipe(
        name="fruit_nar",
        summary="demo NAR transformer (MaskGIT), class-conditional",
        task=GeneratorTaskConfig(model, small_transformer_optim(1e-3), DATA, num_views=6),
        loop=LOOP,
        upstream="fruit_phase1",
    )
