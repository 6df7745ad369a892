"""`semvq compare`: who is compared with what, what the page and its figures hold, and refusals."""

import json
import re
import shutil

import pytest
import torch

from semvq import compare_command
from semvq.cli import main
from semvq.compare_command import open_entrants
from semvq.data.images import DataConfig, ImageSet, eval_batches, to_float, to_uint8
from semvq.evaluation import intervals, side_by_side
from semvq.evaluation.feature_sets import FeatureSums
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.rows import QUALITY, ROWS, figures, scatters
from semvq.metrics import psnr
from semvq.probe.comparison import Value
from semvq.tokenizer.files import load_tokenizer
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_generator, toy_phase1, toy_phase2

CPU = torch.device("cpu")
NETWORK = "--network mobilenet-v2 --num 70 --photos 3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = photos(folder / "train")
    photos(folder / "val", per_class=4, seed=1)
    for recipe in (toy_phase1(), toy_phase2(), toy_generator("ar"), toy_generator("nar")):
        assert train_recipe(recipe, folder / recipe.name, data=data) is None
    other = toy_phase1(seed=1)
    assert train_recipe(other, folder / "other" / "toy_phase1", data=data) is None
    return folder


@pytest.fixture
def at(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(side_by_side, "SMALL_IMAGES", 32)
    monkeypatch.setattr(intervals, "NUM_SLOW_DRAWS", 3)
    return tmp_path


def status(line: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    return stop.value.code


def compared(runs: str, at, more: str = "--train train") -> tuple[str, dict]:
    line = f"compare {runs} --data val {more} {NETWORK} --out {at}/page.html --json {at}/f.json"
    assert status(line) == 0
    return (at / "page.html").read_text(), json.loads((at / "f.json").read_text())


@pytest.mark.slow
def test_page_and_figures_of_tokenizers_with_their_transformers(at):
    runs = "toy_phase1 toy_phase2 other/toy_phase1 toy_ar toy_nar"
    page, record = compared(runs, at)
    first, second, other = record["figures"].values()
    assert list(record["figures"])[2] == "other/toy_phase1"
    assert set(first) == set(second) == set(ROWS), "both speak the codes of toy_ar and toy_nar"
    assert not {"AR cross-entropy", "NAR FID", "prediction FID"} & set(other)
    assert {"PSNR", "rFID", "n-gram", "small transformer"} <= set(other)
    # the same codes, other decoders
    same = ("perplexity", "n-gram", "small transformer", "AR cross-entropy", "NAR top-1 accuracy")
    assert all(first[name] == second[name] for name in same)
    assert first["PSNR"] != second["PSNR"] and first["perplexity"] != other["perplexity"]
    assert page.count("<img") > 3 * (1 + 3 + 2) and "AR cross-entropy" in page
    assert "between two different photos: semantic" in record["facts"]


@pytest.mark.slow
def test_tokenizers_alone_need_neither_transformers_nor_training_images(at):
    _, record = compared("toy_phase1 other/toy_phase1", at, more="")
    first, _ = record["figures"].values()
    assert {"PSNR", "LPIPS", "rFID", "codebook usage"} <= set(first) and "n-gram" not in first


@pytest.mark.slow
def test_psnr_is_that_of_the_reconstructions(at, runs):
    _, record = compared("toy_phase1", at, more="")
    batch = next(iter(eval_batches(ImageSet.open(runs / "val"), DataConfig(16), 12)))
    images = to_float(batch["image"])
    tokenizer = load_tokenizer(runs / "toy_phase1")
    with torch.no_grad():
        again = to_float(to_uint8(tokenizer.decode(tokenizer.encode(images))))
    (found,) = record["figures"].values()
    assert found["PSNR"]["value"] == pytest.approx(float(psnr(again, images).mean()), rel=1e-6)


def test_a_generator_brings_its_own_tokenizer(runs):
    (entrant,) = open_entrants([runs / "toy_ar", runs / "toy_nar"], CPU)
    assert entrant.name == "toy_phase1" and set(entrant.generators) == {"AR", "NAR"}
    assert "16 codes" in entrant.subtitle and "AR" in entrant.subtitle


@pytest.mark.parametrize(
    "line, words",
    [
        ("toy_phase1 toy_phase1", "expected different runs"),
        ("toy_phase1 toy_ar copy/toy_ar", "expected one AR run .* found toy_ar and copy/toy_ar"),
        ("nowhere", "nowhere: expected the folder of a tokenizer run"),
        ("toy_phase1 --photos 0", "--photos: expected at least 1"),
        ("toy_phase1 --network resnet", "expected one of inception"),
        ("toy_ar --data train/red", "expected the classes blue, green, red; found none"),
    ],
)
def test_mistakes_end_in_one_line(at, runs, capsys, line, words):
    if not (runs / "copy").exists():
        shutil.copytree(runs / "toy_ar", runs / "copy" / "toy_ar")
    data = "" if "--data" in line else "--data val"
    assert status(f"compare {line} {data}") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(words, error), error


def test_two_resolutions_are_refused(runs):
    entrants = open_entrants([runs / "toy_phase1", runs / "other" / "toy_phase1"], CPU)
    object.__setattr__(entrants[1].tokenizer.config, "resolution", 32)
    with pytest.raises(ValueError, match="one resolution, found .* 16 px, .* 32 px"):
        compare_command._one_resolution(entrants)


def test_every_cross_entropy_stands_beside_the_quality():
    for name, row in ROWS.items():
        if "bits" in row.unit or "accuracy" in name:
            assert row.beside == QUALITY, name


def test_rows_nobody_has_are_left_out_and_plots_need_two():
    rows = [
        {"PSNR": Value(20.0, 0.1), "rFID": Value(3.0), "AR FID": Value(9.0)},
        {"PSNR": Value(21.0)},
    ]
    table = figures(rows)
    assert [f.name for f in table] == ["PSNR", "rFID", "AR FID"]
    assert table[1].values == [Value(3.0), None]
    assert scatters(["a", "b"], rows) == []
    rows[1] |= {"rFID": Value(2.0), "AR FID": Value(8.0)}
    (plot,) = scatters(["a", "b"], rows)
    assert [(p.label, p.x, p.y) for p in plot.points] == [("a", 3.0, 9.0), ("b", 2.0, 8.0)]


def test_interval_of_a_mean_is_that_of_the_central_limit():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 1.96 * float(values.std()) / 20
    assert intervals.mean_interval(values) == pytest.approx(expected, rel=0.1)
    assert intervals.mean_interval(values) == intervals.mean_interval(values)


def test_interval_of_a_frechet_distance_covers_what_other_images_give():
    def pair(seed: int):
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(300, 8, generator=generator) for _ in range(2))
        sets = []
        for rows in (x, 0.8 * x + 0.6 * y + 0.3):
            sums = FeatureSums()
            sums.add(rows)
            sets.append(sums.result({}))
        return sets

    values = [frechet_distance(a.gaussian, b.gaussian) for a, b in map(pair, range(40))]
    spread = 1.96 * float(torch.tensor(values).std())
    found = float(torch.tensor([intervals.frechet_interval(*pair(s)) for s in range(5)]).mean())
    assert found == pytest.approx(spread, rel=0.35)


def test_distances_of_large_sets_have_no_interval(monkeypatch):
    monkeypatch.setattr(intervals, "MAX_IMAGES", 10)
    sums = FeatureSums()
    sums.add(torch.randn(11, 4))
    found = sums.result({})
    assert intervals.frechet_interval(found, found) is None
    assert intervals.sample_interval(found, found) is None
    assert intervals.perplexity_interval(torch.zeros(11, 2, 2, dtype=torch.int64), 3) is None
