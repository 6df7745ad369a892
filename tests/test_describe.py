"""`describe` estimates the cost of a recipe; docs/recipes.md names every one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semvq.backbones.efficientnet_lite import load_efficientnet_lite0
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.losses.perceptual import NO_PERCEPTUAL, PerceptualConfig
from semvq.recipes import RECIPES, find_recipe
from semvq.recipes.cost import (
    DEVICES,
    TRAINING_IMAGES,
    count_flop,
    perceptual_flop,
    training_images,
)
from semvq.recipes.describe import describe

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="expected one of h100, .*, found device 'h1000'.*h100"):
        describe(find_recipe("fruit_ar"), "h1000")


@pytest.mark.parametrize("wrong", [{"num_devices": 0}, {"epoch_size": -1}])
def test_counts_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1, found"):
        describe(find_recipe("fruit_ar"), "h100", **wrong)


@pytest.mark.parametrize("name", ["imagenet256_phase1", "imagenet256_ar"])
def test_hours_scale_inversely_with_the_number_of_devices(name):
    one, eight = (describe(find_recipe(name), "h100", num_devices=n)["hours"] for n in (1, 8))
    assert one / eight == pytest.approx(8, rel=0.01)


def test_hours_are_work_over_rate():
    facts = describe(find_recipe("ffhq256_nar"), "a100")
    work = facts["images_seen"] * facts["training_gflop_per_image"] * 1e9
    assert facts["hours"] == pytest.approx(work / (0.4 * 312e12) / 3600, rel=0.01)
    assert "assumes 40%" in facts["hours_note"] and "not a measurement" in facts["hours_note"]


def test_the_perceptual_loss_is_counted_at_the_rate_of_fp32():
    facts = describe(find_recipe("imagenet256_phase1"), "h200")
    seconds = (
        facts["training_gflop_per_image"] / 989.4 + facts["perceptual_gflop_per_image"] / 494.7
    ) / 1e3  # GFLOP over TFLOP/s
    assert facts["hours"] == pytest.approx(seconds / 0.3 * 128e6 / 3600, rel=0.01)
    sum_of_both = facts["training_gflop_per_image"] + facts["perceptual_gflop_per_image"]
    assert facts["training_pflop"] == pytest.approx(128e6 * sum_of_both / 1e6)


def test_without_a_device_there_are_no_hours():
    facts = describe(find_recipe("fruit_phase1"))
    assert "hours" not in facts and facts["images_seen"] == 2400


def test_epochs_take_the_published_size_of_the_papers_data_sets():
    assert describe(find_recipe("imagenet256_ar"))["images_seen"] == 300 * 1_281_167
    assert describe(find_recipe("lsun_church256_tokenizer"))["images_seen"] == 126_227
    assert describe(find_recipe("imagenet256_ar"), epoch_size=10)["images_seen"] == 3000
    assert training_images("fruit_ar") is None
    for family in TRAINING_IMAGES:
        assert any(make.__name__.startswith(f"{family}_") for make in RECIPES)


def test_a_data_set_of_unknown_size_is_said():
    epochs = replace(find_recipe("fruit_ar"), loop=find_recipe("imagenet256_ar").loop)
    facts = describe(epochs, "h100")
    assert facts["images_seen"] == "300 epochs of your data set"
    assert "epoch_size" in facts["hours"] and "training_pflop" not in facts
    assert describe(epochs, "h100", epoch_size=1000)["hours"] > 0


def test_vgg_flops_are_the_known_ones():
    # 15.47 G multiply-adds for a photo of 224 px, 3 passes of two FLOPs each
    full = PerceptualConfig(semantic_layers=("logit",), logits_size=224)
    assert perceptual_flop(full, 256) / 6 == pytest.approx(15.47e9, rel=0.002)
    features = PerceptualConfig(alpha=0.0, vgg_size=224)
    assert perceptual_flop(features, 64) / 6 == pytest.approx(15.35e9, rel=0.002)
    assert perceptual_flop(NO_PERCEPTUAL, 256) == 0
    four_times = PerceptualConfig(alpha=0.0, vgg_size=None)
    assert perceptual_flop(four_times, 128) == 4 * perceptual_flop(four_times, 64)


@pytest.mark.parametrize(
    ("name", "load"),
    [("efficientnet-lite0", load_efficientnet_lite0), ("mobilenet-v2", load_mobilenet_v2)],
)
def test_published_multiply_adds_of_the_small_classifiers_fit_the_networks(name, load):
    config = PerceptualConfig(semantic_layers=("logit",), logits_from=name, logits_size=128)
    counted = count_flop(load(), torch.zeros(1, 3, 128, 128))
    assert perceptual_flop(config, 64) == pytest.approx(3 * counted, rel=0.06)


def test_every_recipe_is_described_for_every_device_as_json():
    for make in RECIPES[:6]:
        for device in DEVICES:
            facts = json.loads(json.dumps(describe(make(), device, num_devices=2)))
            assert facts["hours"] > 0 and facts["device"].startswith("2 x ")


def test_the_page_has_a_row_for_every_recipe_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [make.__name__ for make in RECIPES]
    for name, row in rows:
        recipe = find_recipe(name)
        assert recipe.loop.duration in row, name
        assert f"`{recipe.upstream}`" in row if recipe.upstream else "nothing" in row, name
        for figure in recipe.published:
            assert f"{figure.value:g}" in row, (name, figure)
