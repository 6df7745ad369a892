"""Every recipe: built at full size without memory, and run for two steps after one shrinking."""

from dataclasses import replace

import pytest

from semvq.config import from_dict, to_dict
from semvq.losses.discriminators import PatchGANConfig, StyleGANDiscriminatorConfig
from semvq.recipes import RECIPES
from semvq.recipes.describe import describe
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe
from semvq.training.runs import train_recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig
from tests.toy import photos

# method counts: tokenizer 54.5M / 57.9M; transformers with the class-conditional ImageNet sizes
COUNTS = {
    "imagenet256_phase1": 54_515_587,
    "imagenet256_phase2": 57_938_819,
    "imagenet256_ar": 172_647_936,
    "imagenet256_ar_l": 305_694_720,
    "imagenet256_nar": 172_457_193,
    "imagenet256_nar_l": 305_701_865,
}


@pytest.mark.parametrize("make", RECIPES, ids=lambda f: f.__name__)
def test_recipe_is_named_documented_and_described(make):
    recipe = make()
    assert recipe.name == make.__name__ and make.__doc__ and recipe.summary
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    names = [f.__name__ for f in RECIPES]
    assert recipe.upstream is None or recipe.upstream in names
    facts = describe(recipe)
    if recipe.name in COUNTS:
        counts = facts["parameters"]
        assert COUNTS[recipe.name] in counts.values()
        assert recipe.published, "the paper's figure stands beside it"


def shrink(recipe: Recipe) -> Recipe:
    """The one shrinking all recipes share: toy widths, small images, two steps."""
    loop = replace(
        recipe.loop, duration="2 steps", batch_size=4, log_every="1 step", evaluate_every="2 steps",
        save_every="2 steps",
    )  # fmt: skip
    task = recipe.task
    if isinstance(task, TokenizerTaskConfig):
        factor = 2 ** (len(task.tokenizer.multipliers) - 1)
        side = 2 * max(factor, 8)
        tokenizer = replace(
            task.tokenizer, resolution=side, channels=8,
            multipliers=tuple(1 for _ in task.tokenizer.multipliers),
            quantizer=replace(task.tokenizer.quantizer, num_codes=16, code_dim=8),
        )  # fmt: skip
        gan = task.adversarial
        if gan:
            small = PatchGANConfig(channels=8, num_layers=1)
            if isinstance(gan.discriminator, StyleGANDiscriminatorConfig):
                small = replace(gan.discriminator, channel_base=64, max_channels=8)
            # felt from the second step on, or from the first where the discriminator is upstream's
            warmup = "0 steps" if gan.warmup == "0 steps" else "1 step"
            gan = replace(gan, discriminator=small, start="0 steps", warmup=warmup, ramp="0 steps")
        perceptual = replace(task.perceptual, logits_from="efficientnet-lite0", logits_size=32)
        task = replace(
            task, tokenizer=tokenizer, adversarial=gan, perceptual=perceptual,
            data=replace(task.data, resolution=side, val_share=0.25),
        )  # fmt: skip
    elif isinstance(task, GeneratorTaskConfig):
        grid = 2 if task.generator.grid_height == 16 else 4
        generator = replace(
            task.generator, num_layers=2, width=32, num_heads=2, num_codes=16, grid_height=grid,
            grid_width=grid, num_classes=3,
        )  # fmt: skip
        data = replace(task.data, resolution=32 if grid == 2 else 16, val_share=0.25)
        task = replace(task, generator=generator, data=data, num_views=2)
    return replace(recipe, task=task, loop=loop)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    photos(folder / "photos")
    return folder


@pytest.mark.parametrize("make", RECIPES, ids=lambda f: f.__name__)
def test_recipe_trains_two_steps_when_shrunk(make, runs):
    recipe = shrink(make())
    assert train_recipe(recipe, runs / recipe.name, data=runs / "photos") is None
    assert (runs / recipe.name / "model.safetensors").exists()
