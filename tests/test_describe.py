"""`describe` estimates the cost of a recipe; docs/recipes.md names every one."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bench.case import Setting
from bench.tasks import generator_recipe, phase1, phase2

from semvq.backbones.efficientnet_lite import load_efficientnet_lite0
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.cli import main
from semvq.losses.perceptual import NO_PERCEPTUAL, PerceptualConfig
from semvq.recipes import RECIPES, find_recipe
from semvq.recipes.cost import (
    DEVICES,
    TRAINING_IMAGES,
    count_flop,
    find_devices,
    perceptual_flop,
    perceptual_parameters,
    training_images,
)
from semvq.recipes.describe import describe, family_rows, hours_in_all, rows
from semvq.recipes.estimate import MEASURED, MIB, nearest_row
from semvq.recipes.tables import table_recipes

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("h1000", "expected one of h100, .*, found device 'h1000' .did you mean 'h100'.*h200x8"),
        ("h300x8", "found device 'h300x8'"),
        ("x8", "found device 'x8'"),
        ("h200x0", "expected how many devices after 'h200x', at least 1, found '0'; give h200x8"),
        ("h200x", "found ''"),
        ("h200x-1", "found '-1'"),
        ("rtx4090x2.5", "found '2.5'; give rtx4090x8"),
        ("", "found device ''"),
    ],
)
def test_other_devices_are_refused(device, message):
    with pytest.raises(ValueError, match=message) as error:
        describe(find_recipe("fruit_ar"), device)
    assert "\n" not in str(error.value)


def test_one_device_and_several_are_named():
    assert find_devices("rtx4090") == (DEVICES["rtx4090"], 1)
    assert find_devices("rtx4090x2") == (DEVICES["rtx4090"], 2)
    assert find_devices("a100-40gbx16") == (DEVICES["a100-40gb"], 16)


def test_epoch_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="epoch_size: expected at least 1, found -1"):
        describe(find_recipe("fruit_ar"), "h100", epoch_size=-1)


GPU = Setting("cuda", "paper", "bf16")
BENCH = {
    "step-ar": partial(generator_recipe, GPU, "ar"),
    "step-nar": partial(generator_recipe, GPU, "nar"),
    "step-phase1-patchgan": partial(phase1, GPU, "patchgan"),
    "step-phase1-stylegan": partial(phase1, GPU, "stylegan"),
    "step-phase2": partial(phase2, GPU),
}


@pytest.mark.parametrize("row", MEASURED)
def test_a_measured_step_is_estimated_as_it_was_measured(row):
    """The estimate for the bench's own recipe at that batch: the counts, the rate, the peak."""
    recipe, step = BENCH[row](), MEASURED[row]
    recipe = replace(recipe, loop=replace(recipe.loop, batch_size=step.batch))
    facts = describe(recipe, "h200")
    assert nearest_row(recipe.task) == row
    assert facts["training_gflop_per_image"] == step.gflop
    assert facts.get("perceptual_gflop_per_image", 0) == step.gflop_fp32
    assert facts["layer_outputs_per_image"] == step.outputs
    rate = facts["images_seen"] / facts["hours"] / 3600
    assert rate == pytest.approx(step.rate, rel=0.005)
    assert f"measured on one H200: {step.rate:,g} images/s" in facts["hours_note"]
    # the row's peak is beyond what its first call found there: weights, averages, frozen networks
    beyond = facts["memory_gb"] * 1e9 - (facts["state_bytes"] - step.held * MIB)
    assert beyond / MIB == pytest.approx(step.peak, abs=0.005e9 / MIB + 1)
    trained = trained_parameters(recipe.task)
    several_steps = "phase" in row  # the optimiser's moments are there from the second one on
    assert trained * (12 if several_steps else 4) / MIB == pytest.approx(step.held, abs=0.6)
    assert facts["images_at_a_time"] == step.batch and not facts["warnings"]


def trained_parameters(task):
    with torch.device("meta"):
        if not hasattr(task, "tokenizer"):
            return sum(p.numel() for p in task.generator.build().parameters())
        model = task.tokenizer.build()
        gan = task.adversarial.discriminator.build(task.tokenizer.resolution)
    if task.freeze_code_space:
        model.freeze_code_space()
    return sum(p.numel() for m in (model, gan) for p in m.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["imagenet256_phase1", "imagenet256_ar"])
def test_more_devices_take_less_time_and_less_memory_each(name):
    found = [describe(find_recipe(name), f"h100{n}") for n in ("", "x2", "x8")]
    assert found[0]["hours"] / found[2]["hours"] == pytest.approx(8, rel=0.01)
    assert found[0]["hours"] > found[1]["hours"] > found[2]["hours"]
    assert found[0]["memory_gb"] > found[1]["memory_gb"] > found[2]["memory_gb"]
    assert [f["images_at_a_time"] for f in found] == [256, 128, 32]
    assert "divided by 8: the gradients' all-reduce is not counted" in found[2]["hours_note"]
    assert "all-reduce" not in found[0]["hours_note"]


def test_state_is_counted_from_what_trains():
    """fp32: 4 bytes a weight; gradient, two moments and, but for the GAN, the average if it trains.

    The perceptual loss's networks are frozen: VGG16, and in phase 1 the whole of it once more.
    """
    phase1, phase2 = (describe(find_recipe(f"imagenet256_{n}")) for n in ("phase1", "phase2"))
    gan, whole, convs = 23_996_481, 138_357_544, 14_714_688
    assert phase1["state_bytes"] == 20 * 54_515_587 + 16 * gan + 4 * (whole + convs)
    decoder, rest = 33_901_571, 57_938_819 - 33_901_571
    assert phase2["state_bytes"] == 20 * decoder + 4 * rest + 16 * gan + 4 * convs
    assert describe(find_recipe("imagenet256_ar"))["state_bytes"] == 20 * 172_647_936


def test_what_does_not_fit_is_said_with_a_way_out_that_fits():
    recipe = find_recipe("imagenet256_phase1")
    [line] = describe(recipe, "h200")["warnings"]
    assert line.startswith("does not fit into 141 GB; give --set loop.accumulate=2 (the usage")
    for accumulate, fits in ((8, True), (4, False)):
        loop = replace(recipe.loop, accumulate=accumulate)
        facts = describe(replace(recipe, loop=loop), "rtx4090x2")
        assert (not facts["warnings"]) == (facts["memory_gb"] <= facts["memory_of_gb"]) == fits
    assert "loop.accumulate=8 (the usage entropy is then over 32 images" in facts["warnings"][0]
    assert "instead of 64" in facts["warnings"][0], "of parts of 4, which is what it was changed to"
    model = replace(find_recipe("imagenet256_ar").task.generator, width=6144)
    task = replace(find_recipe("imagenet256_ar").task, generator=model)
    [line] = describe(replace(find_recipe("imagenet256_ar"), task=task), "h200")["warnings"]
    assert "even one image at a time does not" in line


def test_a_batch_that_does_not_divide_is_said_as_training_says_it():
    facts = describe(find_recipe("imagenet256_ar"), "h200x3")
    [line] = facts["warnings"]
    assert "3 GPUs x accumulate 1 divide, found 256; give --set loop.batch_size=255" in line
    assert facts["images_at_a_time"] == 86


def test_other_gpus_take_the_h200s_share_of_the_peak_and_a_cpu_an_assumed_one():
    facts = describe(find_recipe("ffhq256_nar"), "a100")
    work = facts["images_seen"] * facts["training_gflop_per_image"] * 1e9
    share = 1043 * 278.665e9 / 989.4e12
    assert facts["hours"] == pytest.approx(work / (share * 312e12) / 3600, rel=0.01)
    assert facts["hours_note"].startswith("assumed: the H200's share of the peak, measured in")
    assert "29% of the data sheet's 312 TFLOP/s" in facts["hours_note"]
    facts = describe(find_recipe("fruit_ar"), "cpu2")
    assert facts["hours_note"].startswith("assumed, not a measurement, 40% of")
    assert "memory_gb" not in facts


def test_the_perceptual_loss_is_counted_at_the_rate_of_fp32():
    facts = describe(find_recipe("imagenet256_phase1"), "cpu2")
    sum_of_both = facts["training_gflop_per_image"] + facts["perceptual_gflop_per_image"]
    assert facts["hours"] == pytest.approx(sum_of_both / 384 / 0.3 * 128e6 / 3600, rel=0.01)
    recipe = find_recipe("imagenet256_phase1")
    half = replace(recipe, task=replace(recipe.task, perceptual=NO_PERCEPTUAL))
    share = MEASURED[nearest_row(recipe.task)].share
    looked = facts["perceptual_gflop_per_image"] / 494.7 / 1e3 / share
    difference = describe(recipe, "h200")["hours"] - describe(half, "h200")["hours"]
    assert difference == pytest.approx(looked * 128e6 / 3600, rel=0.02)
    assert facts["training_pflop"] == pytest.approx(128e6 * sum_of_both / 1e6)


def test_a_name_will_do_for_a_recipe():
    assert describe("fruit_ar") == describe(find_recipe("fruit_ar"))
    with pytest.raises(ValueError, match="expected a recipe, found 'fruit'"):
        describe("fruit")


def test_working_a_tokenizers_batch_off_in_parts_is_said_to_change_the_usage_entropy():
    [line] = describe("ffhq256_phase1", "rtx4090")["warnings"]
    assert "accumulate=16 (the usage entropy is then over 16 images instead of 256: " in line
    for name in ("ffhq256_phase2", "ffhq256_nar"):  # codes are frozen, or there is no such term
        [line] = describe(name, "rtx4090")["warnings"]
        assert re.search(r"give --set loop.accumulate=\d+$", line), line


def test_a_length_in_steps_is_said_in_epochs_too():
    facts = describe("ffhq256_phase1", epoch_size=60_000)
    assert facts["images_seen"] == 128_000_000 and facts["epochs"] == pytest.approx(2133.33)
    shown = "128,000,000 = 2,133 epochs of 60,000 images"
    assert dict(rows(facts))["images seen"] == shown
    assert dict(rows(describe("ffhq256_phase1")))["images seen"] == shown, "the published size"
    assert dict(rows(describe("fruit_ar")))["images seen"] == "9,600"
    short = rows(describe("fruit_ar", epoch_size=5000))
    assert dict(short)["images seen"] == "9,600 = 1.92 epochs of 5,000 images"


def test_several_recipes_have_their_hours_in_all():
    names = ("fruit_phase1", "fruit_ar")
    family = {name: describe(name, "h100") for name in names}
    total = sum(facts["hours"] for facts in family.values())
    assert hours_in_all(family) == pytest.approx(total, abs=1e-3)
    found = family_rows(family)
    assert [label for label, _ in found] == [*names, "in all"] and " hours" in found[-1][1]
    unknown = {"lsun": describe("lsun_cat256_ar", "h100"), "mine": {**family["fruit_ar"]}}
    unknown["mine"]["hours"] = "needs the number"
    assert hours_in_all(unknown) is None and "--epoch-size" in family_rows(unknown)[-1][1]
    without = {name: describe(name) for name in names}
    assert hours_in_all(without) is None and "give --device" in family_rows(without)[-1][1]


def test_without_a_device_there_are_no_hours():
    facts = describe(find_recipe("fruit_phase1"))
    assert "hours" not in facts and facts["images_seen"] == 2400


def test_epochs_take_the_published_size_of_the_papers_data_sets():
    assert describe(find_recipe("imagenet256_ar"))["images_seen"] == 300 * 1_281_167
    assert describe(find_recipe("lsun_church256_tokenizer"))["images_seen"] == 126_227
    assert describe(find_recipe("imagenet256_ar"), epoch_size=10)["images_seen"] == 3000
    assert training_images("fruit_ar") is None
    names = [make.__name__ for make in RECIPES] + list(table_recipes())
    for family in TRAINING_IMAGES:
        assert any(name.startswith(f"{family}_") for name in names)


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
    alone = replace(config, semantic_layers=("logit",), detail_layers=())
    numel = sum(t.numel() for t in load().buffers()) + sum(t.numel() for t in load().parameters())
    assert perceptual_parameters(alone) == pytest.approx(numel, rel=0.02)


def test_recipes_are_described_for_every_device_as_json():
    for make in RECIPES[1:6:3]:  # a tokenizer and a transformer
        for device in DEVICES:
            facts = json.loads(json.dumps(describe(make(), f"{device}x2")))
            assert facts["hours"] > 0 and facts["device"].startswith("2 x ")
            assert facts.get("memory_gb", 0) > 0 or device == "cpu2"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["imagenet256", "ffhq256"])  # LSUN's are of the same sizes
def test_every_recipe_of_the_papers_fits_eight_h200s(family):
    for make in RECIPES:
        if make.__name__.startswith(f"{family}_"):
            facts = describe(make(), "h200x8")
            assert facts["hours"] > 0 and 1 < facts["memory_gb"] < 141 and not facts["warnings"]


def test_the_page_has_a_row_for_every_recipe_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [make.__name__ for make in RECIPES]
    for name, row in rows:
        recipe = find_recipe(name)
        assert recipe.loop.duration in row, name
        assert f"`{recipe.upstream}`" in row if recipe.upstream else "nothing" in row, name
        for figure in recipe.published:
            assert f"{figure.value:g}" in row, (name, figure)


def test_several_nodes_share_the_work_and_need_a_network():
    """A ring of 16: 15/16 of the gradients twice, in the two thirds that go backward."""
    recipe = find_recipe("imagenet256_ar_l")
    one, two = (describe(recipe, "h200x8", nodes=n) for n in (1, 2))
    assert two["hours"] == pytest.approx(one["hours"] / 2, rel=0.01)
    assert "network_gbit" not in one and two["device"] == "2 nodes of 8 x NVIDIA H200 SXM"
    step = two["hours"] * 3600 * recipe.loop.batch_size / two["images_seen"]
    bits = 2 * 15 / 16 * 8 * 4 * two["parameters"]["transformer"]
    assert two["network_gbit"] == pytest.approx(bits / (step * 2 / 3) / 1e9, rel=0.01)


def test_split_weights_take_their_share_of_memory_and_more_of_the_network():
    recipe = find_recipe("imagenet256_ar_l")
    split = replace(recipe, loop=replace(recipe.loop, split=True))
    whole, parts = (describe(r, "h200x8", nodes=2) for r in (recipe, split))
    saved = whole["state_bytes"] * 15 / 16 / 1e9
    assert whole["memory_gb"] - parts["memory_gb"] == pytest.approx(saved, abs=0.02)
    assert parts["network_gbit"] == pytest.approx(whole["network_gbit"], rel=0.01)  # 3 : 3/2


def test_nodes_without_a_device_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "imagenet256_ar", "--nodes", "2"])
    assert "--nodes: expected --device beside it" in capsys.readouterr().err
