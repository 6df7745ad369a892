"""Toy data and recipes that the tests share: seconds, not minutes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from semvq.data.images import DataConfig
from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig
from semvq.losses.discriminators import PatchGANConfig, StyleGANDiscriminatorConfig
from semvq.losses.perceptual import NO_PERCEPTUAL, PerceptualConfig
from semvq.recipes.base import decoder_phase
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.quantize import UnquantizedConfig, VectorQuantizerConfig
from semvq.training.adversary import AdversarialConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 30)}
SIDE = 16
DATA = DataConfig(resolution=SIDE, min_crop=0.8, random_position=True, flip=True, val_share=0.25)
ADAM = OptimConfig(learning_rate=1e-3, warmup="2 steps", clip_norm=1.0)


def photos(folder: Path, per_class: int = 8, seed: int = 0) -> Path:
    """Class folders of noisy PNG files in the class's colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.array(colour) + rng.normal(0, 40, (20, 24, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{index}.png")
    return folder


def loop(**changes: object) -> LoopConfig:
    base = LoopConfig(
        duration="6 steps", batch_size=4, ema_decay=0.9, log_every="2 steps",
        evaluate_every="100 steps", save_every="100 steps",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def toy_phase1(**changes: object) -> Recipe:
    return Recipe(
        name="toy_phase1",
        summary="toy",
        task=TokenizerTaskConfig(
            tokenizer=ConvTokenizerConfig(
                resolution=SIDE, channels=8, multipliers=(1, 2, 2), blocks_per_level=1,
                middle_blocks=1, quantizer=VectorQuantizerConfig(num_codes=16, code_dim=8),
            ),
            data=DATA,
            optim=ADAM,
            perceptual=PerceptualConfig(
                alpha=1.0, form="balanced", weight=0.5, vgg_size=None,
                logits_from="efficientnet-lite0", logits_size=32,
            ),
            adversarial=AdversarialConfig(
                discriminator=PatchGANConfig(channels=8, num_layers=1), optim=ADAM,
                objective="hinge", weight=0.8, adaptive=True, start="1 steps", warmup="1 steps",
            ),
        ),
        loop=loop(**changes),
    )  # fmt: skip


def toy_autoencoder(**changes: object) -> Recipe:
    first = toy_phase1(**changes)
    tokenizer = replace(first.task.tokenizer, quantizer=UnquantizedConfig(code_dim=8))
    task = replace(
        first.task, tokenizer=tokenizer, perceptual=NO_PERCEPTUAL, adversarial=None
    )  # fmt: skip
    return replace(first, name="toy_autoencoder", task=task)


def toy_phase2(**changes: object) -> Recipe:
    recipe = decoder_phase(
        toy_phase1(), name="toy_phase2", summary="toy", duration="6 steps", learning_rate=1e-3,
        attention_pairs=1,
    )  # fmt: skip
    gan = AdversarialConfig(
        discriminator=StyleGANDiscriminatorConfig(channel_base=64, max_channels=8), optim=ADAM,
        objective="logistic", weight=0.1, warmup="1 step", r1_weight=10.0, r1_every=2,
    )  # fmt: skip
    return replace(recipe, task=replace(recipe.task, adversarial=gan), loop=loop(**changes))


def toy_generator(kind: str, **changes: object) -> Recipe:
    model = {"ar": ARConfig, "nar": NARConfig}[kind](
        num_layers=2, width=32, num_heads=2, dropout=0.1, num_codes=16, grid_height=4,
        grid_width=4, num_classes=3, conditioning_dropout=0.2,
    )  # fmt: skip
    return Recipe(
        name=f"toy_{kind}",
        summary="toy",
        task=GeneratorTaskConfig(model, ADAM, DATA, num_views=2),
        loop=loop(**changes),
        upstream="toy_phase1",
    )


TOYS = {
    "autoencoder": toy_autoencoder,
    "phase1": toy_phase1,
    "phase2": toy_phase2,
    "ar": lambda **c: toy_generator("ar", **c),
    "nar": lambda **c: toy_generator("nar", **c),
}
