"""Every recipe: built at full size without memory, and run for two steps after one shrinking."""

import shutil

import pytest

from semvq.config import duration_in_images, from_dict, to_dict
from semvq.recipes import RECIPES, find_recipe
from semvq.recipes.base import autoencoder_phase
from semvq.recipes.describe import describe
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe
from semvq.training.runs import train_recipe
from tests.shrinking import shrink
from tests.toy import photos

PAPER = ("imagenet256", "ffhq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256")
# Sec. 4: tokenizers of 54.5M and 57.9M; transformers of 171M without and with ImageNet's classes
TOKENIZER, SEQGAN = 54_515_587, 57_938_819
AR, NAR = 171_879_936, 171_687_425
COUNTS = {
    "fruit_autoencoder": 557_899,
    "fruit_phase1": 561_995,
    "fruit_phase2": 637_643,
    "fruit_phase2_control": 561_995,
    "fruit_ar": 1_882_624,
    "fruit_nar": 1_818_895,
    "imagenet256_phase1": TOKENIZER,
    "imagenet256_phase2": SEQGAN,
    "imagenet256_ar": 172_647_936,
    "imagenet256_ar_l": 305_694_720,
    "imagenet256_nar": 172_457_193,
    "imagenet256_nar_l": 305_701_865,
    "ffhq256_phase1": TOKENIZER,
    "ffhq256_phase2": SEQGAN,
    "ffhq256_nar": NAR,
    "lsun_church256_tokenizer": TOKENIZER,
    "lsun_church256_phase2": SEQGAN,
    "lsun_church256_ar": AR,
    "lsun_church256_nar": NAR,
    "lsun_cat256_tokenizer": TOKENIZER,
    "lsun_cat256_phase2": SEQGAN,
    "lsun_cat256_ar": AR,
    "lsun_cat256_nar": NAR,
    "lsun_bedroom256_tokenizer": TOKENIZER,
    "lsun_bedroom256_phase2": SEQGAN,
    "lsun_bedroom256_ar": AR,
    "lsun_bedroom256_nar": NAR,
    "labelled64_autoencoder": 16_383_563,
    "labelled64_phase1": 16_391_755,
    "labelled64_phase2": 17_430_859,
    "labelled64_ar": 39_060_480,
    "labelled64_nar": 38_802_021,
    "photos128_autoencoder": 17_131_691,
    "photos128_phase1": 17_139_883,
    "photos128_phase2": 18_253_867,
    "photos128_ar": 39_009_280,
    "photos128_nar": 38_750_209,
}
# Fig. 8b: FID of AR and NAR samples with the first phase's decoder, then with the second's
FIG_8B = {
    "imagenet256": ((7.83, 5.31), (7.55, 4.99)),
    "ffhq256": ((3.89,), (3.62,)),
    "lsun_church256": ((3.49, 3.41), (2.45, 2.25)),
    "lsun_cat256": ((4.73, 5.22), (3.61, 4.60)),
    "lsun_bedroom256": ((2.15, 2.88), (1.44, 2.05)),
}
NAMES = [make.__name__ for make in RECIPES]
TRANSFORMERS = [m.__name__ for m in RECIPES if isinstance(m().task, GeneratorTaskConfig)]


def family(name: str) -> str | None:
    return next((f for f in PAPER if name.startswith(f"{f}_")), None)


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
def test_recipe_is_named_documented_and_described(make):
    recipe = make()
    assert recipe.name == make.__name__ and make.__doc__ and recipe.summary
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    if recipe.upstream:  # listed after what it starts from
        assert NAMES.index(recipe.upstream) < NAMES.index(recipe.name)
    counts = describe(recipe)["parameters"]
    part = "transformer" if isinstance(recipe.task, GeneratorTaskConfig) else "tokenizer"
    assert counts[part] == COUNTS[recipe.name]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_fits_its_upstream_tokenizer(name):
    recipe = find_recipe(name)
    model, tokenizer = recipe.task.generator, find_recipe(recipe.upstream).task.tokenizer
    side = tokenizer.resolution // tokenizer.factor
    assert (model.grid_height, model.grid_width) == (side, side)
    assert model.num_codes == tokenizer.quantizer.num_codes
    assert recipe.task.data.resolution == tokenizer.resolution


def test_the_papers_figures_stand_beside_its_recipes_and_nowhere_else():
    for make in RECIPES:
        recipe = make()
        assert bool(recipe.published) == bool(family(recipe.name)), recipe.name
    for name, phases in FIG_8B.items():
        first = f"{name}_{'tokenizer' if name.startswith('lsun') else 'phase1'}"
        for recipe, figures in zip((first, f"{name}_phase2"), phases):
            printed = [p.value for p in find_recipe(recipe).published if p.where == "Fig. 8b"]
            assert tuple(printed) == figures, recipe
        # one transformer serves both decoders; its own figure is with the second phase's
        for kind, figure in zip(("ar", "nar")[-len(phases[1]) :], phases[1]):
            fids = [p.value for p in find_recipe(f"{name}_{kind}").published if p.metric == "FID"]
            assert fids == [figure], (name, kind)


def test_table_2():
    for name, figure in (("imagenet256_phase2", 1.99), ("ffhq256_phase2", 3.12)):
        rfid = [p.value for p in find_recipe(name).published if p.metric == "rFID"]
        assert rfid == [figure]


def test_lengths_are_the_papers():
    lengths = {
        "phase1": "500k steps", "tokenizer": "1 epoch", "phase2": "200k steps",
        "ar": "500k steps", "nar": "500k steps",
    }  # fmt: skip
    for make in RECIPES:
        recipe = make()
        kind = recipe.name.rpartition("_")[2]
        if family(recipe.name) not in (None, "imagenet256"):
            assert recipe.loop.duration == lengths[kind], recipe.name


def test_lsun_goes_on_with_the_codes_and_the_discriminator_of_imagenet():
    for scene in ("church", "cat", "bedroom"):
        recipe = find_recipe(f"lsun_{scene}256_tokenizer")
        imagenet = find_recipe("imagenet256_phase1")
        assert recipe.upstream == imagenet.name
        assert recipe.task.tokenizer == imagenet.task.tokenizer
        assert recipe.task.adversarial.discriminator == imagenet.task.adversarial.discriminator
        assert recipe.task.perceptual.alpha == 1.0 and not recipe.task.freeze_code_space
        # shorter than the fewest images: 490 steps of churches
        total = 126_227
        warmup = duration_in_images(recipe.task.optim.warmup, 256, total, total)
        assert 0 < warmup < total / 10


def test_the_demos_autoencoder_is_what_the_shared_helper_makes():
    demo = find_recipe("fruit_autoencoder")
    made = autoencoder_phase(
        find_recipe("fruit_phase1"),
        name=demo.name,
        summary=demo.summary,
        duration=demo.loop.duration,
    )
    assert made == demo


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Labelled photos, the same ones in one folder without classes, and the runs so far."""
    folder = tmp_path_factory.mktemp("recipes")
    photos(folder / "labelled")
    (folder / "unlabelled").mkdir()
    for number, file in enumerate(sorted((folder / "labelled").rglob("*.png"))):
        shutil.copy(file, folder / "unlabelled" / f"{number}.png")
    return folder


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
def test_recipe_trains_two_steps_when_shrunk(make, runs):
    recipe = shrink(make())
    labelled = recipe.name.startswith(("fruit", "imagenet256", "labelled64"))
    data = runs / ("labelled" if labelled else "unlabelled")
    assert train_recipe(recipe, runs / recipe.name, data=data) is None
    assert (runs / recipe.name / "model.safetensors").exists()
