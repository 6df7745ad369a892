"""The one shrinking that all recipes share in tests: toy widths, small images, two steps."""

from dataclasses import replace

from semvq.losses.discriminators import PatchGANConfig, StyleGANDiscriminatorConfig
from semvq.recipes import find_recipe
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.rivals.residual import ResidualQuantizerConfig
from semvq.rivals.vit import ViTTokenizerConfig
from semvq.rivals.vqgan import VQGANConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.model import TokenizerConfig
from semvq.tokenizer.quantize import QuantizerConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

NUM_CODES = 16


def shrink(recipe: Recipe) -> Recipe:
    loop = replace(
        recipe.loop, duration="2 steps", batch_size=4, log_every="1 step", evaluate_every="2 steps",
        save_every="2 steps",
    )  # fmt: skip
    task = recipe.task
    if isinstance(task, TokenizerTaskConfig):
        task = _tokenizer_task(task)
    elif isinstance(task, GeneratorTaskConfig):
        tokenizer = shrink(find_recipe(recipe.upstream)).task.tokenizer
        grid = tokenizer.resolution // tokenizer.factor
        generator = replace(
            task.generator, num_layers=2, width=32, num_heads=2,
            num_codes=tokenizer.quantizer.num_codes, grid_height=grid, grid_width=grid,
            num_classes=3 if task.generator.num_classes else 0,
        )  # fmt: skip
        data = replace(task.data, resolution=tokenizer.resolution, val_share=0.25)
        task = replace(task, generator=generator, data=data, num_views=2)
    return replace(recipe, task=task, loop=loop)


def _tokenizer_task(task: TokenizerTaskConfig) -> TokenizerTaskConfig:
    tokenizer = shrink_tokenizer(task.tokenizer)
    gan = task.adversarial
    if gan:
        small = PatchGANConfig(channels=8, num_layers=1)
        if isinstance(gan.discriminator, StyleGANDiscriminatorConfig):
            small = replace(gan.discriminator, channel_base=64, max_channels=8)
        # felt from the second step on, or from the first where the discriminator is upstream's
        warmup = "0 steps" if gan.warmup == "0 steps" else "1 step"
        gan = replace(gan, discriminator=small, start="0 steps", warmup=warmup, ramp="0 steps")
    perceptual = replace(
        task.perceptual, logits_from="efficientnet-lite0", logits_size=32, vgg_size=None
    )
    return replace(
        task, tokenizer=tokenizer, adversarial=gan, perceptual=perceptual,
        data=replace(task.data, resolution=tokenizer.resolution, val_share=0.25),
    )  # fmt: skip


def shrink_tokenizer(config: TokenizerConfig) -> TokenizerConfig:
    """Networks of 8 or 32 channels on two codes a side, or a few more."""
    quantizer = shrink_codes(config.quantizer)
    if isinstance(config, ViTTokenizerConfig):
        return replace(
            config, resolution=16, quantizer=quantizer, patch=8, num_layers=1, width=16,
            num_heads=2,
        )  # fmt: skip
    assert isinstance(config, ConvTokenizerConfig | VQGANConfig)
    flat = tuple(1 for _ in config.multipliers)
    side = 2 * max(2 ** (len(flat) - 1), 8)
    if isinstance(config, VQGANConfig):  # norms of 32 groups
        coarsest = side // 2 ** (len(flat) - 1)
        return replace(
            config, resolution=side, channels=32, multipliers=flat, attention_side=coarsest,
            quantizer=quantizer,
        )  # fmt: skip
    return replace(config, resolution=side, channels=8, multipliers=flat, quantizer=quantizer)


def shrink_codes(config: QuantizerConfig) -> QuantizerConfig:
    changes: dict[str, int] = {"num_codes": NUM_CODES, "code_dim": 8}
    if isinstance(config, FactorizedQuantizerConfig):
        changes["factor_dim"] = 4
    if isinstance(config, ResidualQuantizerConfig):
        changes["depth"] = 2
    if isinstance(config, MultichannelQuantizerConfig):
        changes["channels"] = 2
    return replace(config, **changes)
