"""The paper's tables as recipes: every cell, its cost, and a table made, stopped and resumed."""

import csv
import json
import re
from dataclasses import replace

import pytest

from semvq import assets, table_command, table_numbers, table_plan
from semvq.cli import main
from semvq.config import Config, differences, from_dict, to_dict
from semvq.grammar import parser
from semvq.recipes import RECIPES, find_recipe
from semvq.recipes.ablations import VARIANTS
from semvq.recipes.describe import describe
from semvq.recipes.tables import SCALES, TITLES, cells, table_recipes
from semvq.training.recipe import Recipe
from semvq.training.runs import train_recipe
from tests.shrinking import shrink
from tests.toy import photos

TABLE_RECIPES = table_recipes()
EVERY = [(table, scale) for table in TITLES for scale in SCALES if (table, scale) != ("3", "tiny")]
# the paper's words for its tokenizers (Tables 1 and 3), exactly
COUNTS = {
    "ablation256_low": 54_515_587,
    "ablation256_conv2": 69_861_251,
    "ablation256_attention2": 61_362_051,
    "ablation256_sem_attention": 57_938_819,
    "mini64_low": 16_391_755,
    "tiny48_low": 561_995,
}


@pytest.mark.parametrize("table, scale", EVERY)
def test_every_cell_is_a_recipe_that_can_be_described(table, scale):
    found = cells(table, scale)
    assert found and len({(c.row, c.column, c.dataset) for c in found}) == len(found)
    for cell in found:
        recipe = find_recipe(cell.run)
        assert recipe.name == cell.run
        if cell.decoder:  # speaks the same codes
            code_space = find_recipe(cell.decoder)
            same = {cell.decoder, code_space.upstream}
            assert recipe.upstream in same, cell
            assert recipe.upstream != cell.decoder, "its own decoder is None, measured once"


def test_names_are_told_apart_and_recipes_are_json():
    assert not set(TABLE_RECIPES) & {make.__name__ for make in RECIPES}
    for name, recipe in TABLE_RECIPES.items():
        assert recipe.name == name and from_dict(Recipe, to_dict(recipe)) == recipe
    for name, count in COUNTS.items():
        assert describe(TABLE_RECIPES[name])["parameters"]["tokenizer"] == count


# by the leaves of a recipe's task; a quantizer of another kind is one change
ONE_CHANGE = {
    "conv2": {"tokenizer.decoder_extra_blocks"},
    "attention2": {"tokenizer.decoder_attention_pairs"},
    "no_entropy": {"tokenizer.quantizer.entropy_weight"},
    "factorized": {"tokenizer.quantizer"},
    "kmeans": {"tokenizer.quantizer"},
    **dict.fromkeys("abcde", {"perceptual.alpha", "perceptual.semantic_layers"}),
    **dict.fromkeys(("sem", "alpha20", "alpha40", "alpha60", "alpha80"), {"perceptual.alpha"}),
    "sem_attention": {"perceptual.alpha", "tokenizer.decoder_attention_pairs"},
}


def _changed(one: Config, other: Config) -> set[str]:
    """The paths at which two tasks differ; all of a part of another kind is one."""
    paths = {line.partition(":")[0] for line in differences(one, other)}
    parts = {path.removesuffix(".kind") for path in paths if path.endswith(".kind")}
    return parts | {path for path in paths if not path.startswith(tuple(f"{p}." for p in parts))}


@pytest.mark.parametrize("prefix", ["ablation256", "mini64", "mini128", "tiny48"])
def test_variants_change_what_they_say_of_the_baseline_and_nothing_else(prefix):
    assert ONE_CHANGE.keys() | {"low"} == VARIANTS.keys()
    low = TABLE_RECIPES[f"{prefix}_low"].task
    assert low.perceptual.alpha == 0.0 and low.tokenizer.quantizer.entropy_weight > 0
    for variant, leaves in ONE_CHANGE.items():
        assert _changed(low, TABLE_RECIPES[f"{prefix}_{variant}"].task) == leaves, variant
    assert TABLE_RECIPES[f"{prefix}_sem"].task.perceptual.alpha == 1.0
    assert TABLE_RECIPES["ablation256_e"].task.perceptual.layer_weights() == {"logit": 1.0}
    d = TABLE_RECIPES["mini64_d"].task.perceptual.layer_weights()
    assert sorted(d) == ["logit", "relu4_3", "relu5_3"]


def test_one_phase_is_as_long_as_the_two_it_stands_beside():
    both = {c.row: find_recipe(c.run) for c in cells("fig8", "paper") if c.column == "imagenet256"}
    for kind in ("AR", "NAR"):
        two, one = both[f"{kind}, 1st phase"], both[f"{kind}, one phase"]
        assert (one.loop, one.task) == (two.loop, two.task)
        first, together = find_recipe(two.upstream), find_recipe(one.upstream)
        changed = replace(first.task.tokenizer, decoder_attention_pairs=1)
        assert together.task == replace(first.task, tokenizer=changed)
        assert together.loop == first.loop


def test_baselines_of_two_tables_are_one_recipe():
    assert {c.run for c in cells("1", "mini")} & {c.run for c in cells("6", "mini")} == {
        "mini64_low", "mini64_low_ar", "mini64_low_nar",
    }  # fmt: skip


def distinct() -> list[str]:
    """Of recipes that shrink to the same thing, whatever they and their upstream are called, one.

    Those of two steps, that is: of networks, codes and losses all kinds are here.
    """
    seen: dict[str, str] = {}
    for name, recipe in TABLE_RECIPES.items():
        facts = to_dict(shrink(recipe)) | {"name": "", "summary": "", "published": []}
        facts["upstream"] = recipe.upstream is not None
        facts.pop("loop")
        seen.setdefault(json.dumps(facts, sort_keys=True), name)
    return list(seen.values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    photos(folder / "photos")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
def test_recipe_trains_two_steps_when_shrunk(name, runs):
    recipe = shrink(TABLE_RECIPES[name])
    for upstream in (recipe.upstream,) if recipe.upstream else ():
        first = shrink(find_recipe(upstream))
        if first.upstream:
            before = shrink(find_recipe(first.upstream))
            train_recipe(before, runs / before.name, data=runs / "photos")
        train_recipe(first, runs / first.name, data=runs / "photos")
    assert train_recipe(recipe, runs / name, data=runs / "photos") is None


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["table", *words])
    return stop.value.code


def test_a_dry_run_names_everything_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("5", "--scale", "paper", "--dry-run", "--json", "--rows", "VQGAN", "+F&N") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["cells"]) == 8 and len(plan["recipes"]) == 6
    assert plan["hours"] == pytest.approx(sum(r["hours"] for r in plan["recipes"].values()))
    assert run("1", "--scale", "mini", "--dry-run", "--rows", "+Conv x2", "--seeds", "0", "1") == 0
    said = capsys.readouterr().out
    assert "mini64_conv2_ar_l_2x" in said and "mini64_low" not in said and "2 seeds" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_the_weights_and_images_that_are_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMVQ_CACHE", str(tmp_path))
    words = ("6", "--scale", "paper", "--dry-run", "--json", "--rows", "L_sem")
    assert run(*words, "--columns", "AR") == 0
    needs = json.loads(capsys.readouterr().out)["needs"]
    assert needs == [
        "Give the images of ablation256 by --data and --val",
        "Pretrained weights (698 MB), fetched first or by: semvq assets fetch vgg16 vgg16-full "
        "inception",
    ]
    (tmp_path / "vgg16-full.safetensors").touch()
    photos = ("--data", "photos", "--val", "held-out")
    assert run(*words, "--columns", "rFID", *photos, "--network", "mobilenet-v2") == 0
    needs = json.loads(capsys.readouterr().out)["needs"]
    assert [line.partition("fetch ")[2] for line in needs] == ["vgg16 lpips-linear mobilenet-v2"]


def test_weights_are_fetched_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    """And none for what is trained and measured: the machine may have no network any more."""
    monkeypatch.setenv("SEMVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table_command, "train_recipe", lambda *a, **b: pytest.fail("trained"))
    asked: list[str] = []

    (tmp_path / "cache").mkdir()

    def no_network(name, progress):
        asked.append(name)
        raise assets.AssetError(f"cannot fetch '{name}'")

    monkeypatch.setattr(assets, "fetch", no_network)
    words = ("6", "--scale", "tiny", "--rows", "L_low", "--columns", "rFID", "--out", str(tmp_path))
    assert run(*words) == 2
    assert asked == ["vgg16"] and "cannot fetch 'vgg16'" in capsys.readouterr().err
    seed0 = tmp_path / "seed0"
    for name in ("tiny48_autoencoder", "tiny48_low"):
        (seed0 / name).mkdir(parents=True)
        (seed0 / name / "finished").touch()
    options = parser().parse_args(["table", *words])
    (seed0 / "measured").mkdir()
    (seed0 / "measured" / "tiny48_low-inception.json").touch()
    table_command._fetch_weights(options, table_command._chosen(options))
    assert asked == ["vgg16"]
    (seed0 / "tiny48_low" / "finished").unlink()  # trained anew, and so measured anew
    for name in ("vgg16", "lpips-linear", "efficientnet-lite0"):
        (tmp_path / "cache" / f"{name}.safetensors").touch()
    with pytest.raises(assets.AssetError):
        table_command._fetch_weights(options, table_command._chosen(options))
    assert asked[-1] == "inception"


@pytest.mark.parametrize(
    "words, complaint",
    [
        (("6", "--scale", "mini"), "expected --data with training images for mini64, found none"),
        (("6", "--scale", "mini", "--data", "."), "expected --val with held-out images for mini64"),
        (("6", "--scale", "tiny", "--rows", "F"), "expected a row among L_low, A, B.*found 'F'"),
        (("2", "--scale", "paper", "--data", "."), "one data set at a time.*imagenet256, ffhq256"),
        (("2", "--scale", "paper", "--dataset", "x"), "expected a dataset among imagenet256"),
        (("3", "--scale", "tiny", "--dry-run"), "table 3 has no cells at scale tiny"),
        (("6", "--scale", "tiny", "--num", "-5"), "--num: expected at least 2 samples.*found -5"),
        (("6", "--scale", "tiny", "--num", "0"), "--num: expected at least 2 samples.*found 0"),
        (("6", "--scale", "tiny", "--seeds", "0", "1", "0"), "different seeds, found 0 1 0; give"),
        (("6", "--scale", "tiny", "--seeds", "0", "-1"), "--seeds: expected 0 or more, found -1"),
        (
            ("6", "--scale", "tiny", "--network", "vgg"),
            "expected one of inception, .*found network 'vgg'",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(words, complaint, capsys, monkeypatch):
    monkeypatch.setattr(table_command, "train_recipe", None)
    assert run(*words) == 2
    assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.slow
def test_a_table_is_made_stopped_and_resumed(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "photos", per_class=8)
    photos(tmp_path / "held_out", per_class=4, seed=1)
    monkeypatch.setattr(table_plan, "find_recipe", lambda name: shrink(find_recipe(name)))
    words = ["6", "--scale", "tiny", "--rows", "L_low", "E", "--data", str(tmp_path / "photos")]
    words += ["--val", str(tmp_path / "held_out"), "--out", str(tmp_path / "out"), "--num", "12"]
    words += ["--network", "mobilenet-v2", "--seeds", "0", "1", "--csv", str(tmp_path / "all.csv")]
    trained: list[str] = []

    def stopping(recipe, folder, **given):
        if len(trained) == 4 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            return 15  # as a SIGTERM would
        trained.append(f"{folder.parent.name}/{recipe.name}")
        return train_recipe(recipe, folder, **given)

    monkeypatch.setattr(table_command, "train_recipe", stopping)
    assert run(*words) == 128 + 15
    assert run(*words) == 0
    finished = {
        path.parent: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("finished")
    }
    assert len(finished) == 2 * 7  # the autoencoder, and tokenizer, AR, NAR of two rows
    said = capsys.readouterr().out
    assert "L_low" in said and "[3.45]" in said and "mean of 2 seeds" in said

    def not_again(options):
        raise AssertionError("was measured before")

    monkeypatch.setattr(table_numbers, "measure", not_again)
    assert run(*words) == 0
    assert finished == {path: (path / "finished").stat().st_mtime_ns for path in finished}
    lines = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(lines) == 2 * 6
    by_cell = {(line["seed"], line["run"]): line for line in lines}
    line = by_cell["1", "tiny48_e_nar"]
    assert float(line["value"]) > 0 and float(line["published"]) == 14.0
    record = json.loads((tmp_path / "out/seed1/tiny48_e_nar/recipe.json").read_text())
    assert line["recipe_hash"] == record["hash"] and line["images_seen"] == "8" and line["commit"]
    assert line["images_seen_before"] == "16"  # autoencoder and tokenizer
    # NAR learned the codes that AR's run had left
    assert (tmp_path / "out/seed0/tiny48_e_ar/tokens").exists()
    assert not (tmp_path / "out/seed0/tiny48_e_nar/tokens").exists()
