"""`semvq compare`: who is compared with what, what the page and its figures hold, and refusals."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from semvq import compare_command, correlate_command
from semvq.cli import main
from semvq.compare_command import open_entrants
from semvq.compare_table import CONTROLS, SMALL, table
from semvq.data.images import DataConfig, ImageSet, eval_batches, load_image, to_float, to_uint8
from semvq.evaluation import features, intervals, side_by_side
from semvq.evaluation import photos as evaluated_photos
from semvq.evaluation.feature_sets import FeatureSums
from semvq.evaluation.frechet import frechet_distance
from semvq.evaluation.photos import between_photos, images_at, spread
from semvq.evaluation.reconstruction import ImageDistances
from semvq.evaluation.rows import QUALITY, ROWS, figures, scatters
from semvq.evaluation.sources import UNIT, FileImages
from semvq.evaluation.streaming import Setting
from semvq.evaluation.warnings import few_images
from semvq.generators.files import load_generator
from semvq.metrics import psnr
from semvq.probe.comparison import Value
from semvq.probe.teacher_forcing import predict
from semvq.tokenizer.files import load_tokenizer
from semvq.tokenizer.quantize import UnquantizedConfig
from semvq.training.runs import train_recipe
from tests.evaluation_toy import WIDTH, noisy, toy_network
from tests.toy import DATA, photos, toy_generator, toy_phase1, toy_phase2

CPU = torch.device("cpu")
NETWORK = "--network mobilenet-v2 --num 24 --photos 3"


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
    line = f"compare {runs} --data val {more} {NETWORK} --out {at}/new/page.html --json {at}/f.json"
    assert status(line) == 0
    return (at / "new" / "page.html").read_text(), json.loads((at / "f.json").read_text())


@pytest.mark.slow
def test_page_and_figures_of_tokenizers_with_their_transformers(at):
    runs = "toy_phase1 toy_phase2 other/toy_phase1 toy_ar toy_nar"
    page, record = compared(runs, at)
    first, second, other = record["figures"].values()
    assert list(record["figures"])[2] == "other/toy_phase1"
    assert len(set(record["tokenizers"].values())) == 3 == len(record["figures"])
    assert set(first) == set(second) == set(ROWS) | set(CONTROLS), (
        "both speak the codes of toy_ar and toy_nar"
    )
    assert not {"AR cross-entropy", "NAR FID", "prediction FID"} & set(other)
    assert {"PSNR", "rFID", "n-gram", "small transformer"} <= set(other)
    # the same codes, other decoders
    same = ("perplexity", "n-gram", "small transformer", "AR cross-entropy", "NAR top-1 accuracy")
    assert all(first[name] == second[name] for name in same)
    assert first["PSNR"] != second["PSNR"] and first["perplexity"] != other["perplexity"]
    assert first["held-out FID"] == second["held-out FID"], "of the photos alone"
    assert first["unigram FID"] != second["unigram FID"], "each by its own decoder"
    assert page.count("<img") > 3 * (1 + 3 + 2) and "AR cross-entropy" in page
    assert "between two different photos: semantic" in record["facts"]
    again = correlate_command.read([at / "f.json"])
    assert {name: set(rows) for name, rows in again.items()} == {
        f"{at / 'f.json'}: {name}": set(rows) for name, rows in record["figures"].items()
    }


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


@pytest.fixture
def quickly(at, monkeypatch):
    """`semvq compare` in a toy network: the page's content and the JSON of a command line."""
    monkeypatch.setitem(features.NETWORKS, "toy", toy_network())
    pages = []
    monkeypatch.setattr(compare_command, "write_comparison", lambda _, page: pages.append(page))

    def run(line: str):
        assert status(f"compare {line} --network toy --out {at}/p.html --json {at}/f.json") == 0
        return pages[-1], json.loads((at / "f.json").read_text())

    return run


@pytest.mark.parametrize("broken", [0, 4, 11])
def test_pictures_beside_a_photo_are_its_own_where_a_file_cannot_be_read(quickly, at, runs, broken):
    data = photos(at / "val", per_class=4, seed=1)
    names = [ImageSet.open(data).name(i) for i in range(12)]
    (data / names[broken]).write_bytes(b"")
    page, _ = quickly(f"toy_phase1 toy_ar --data {data} --photos 6")
    good = [name for name in names if name != names[broken]]
    assert page.labels == [good[row] for row in (0, 1, 3, 5, 7, 9)]
    tokenizer, generator = load_tokenizer(runs / "toy_phase1"), load_generator(runs / "toy_ar")
    images = to_float(torch.stack([load_image(data / name, DATA) for name in page.labels]))
    assert torch.equal(page.photos, images)
    classes = torch.tensor([["blue", "green", "red"].index(n.split("/")[0]) for n in page.labels])
    with torch.no_grad():
        codes = tokenizer.encode(images)
        again = tokenizer.decode(codes).clamp(-1, 1)
        found = predict(generator, codes, classes)
    (one,) = page.compared
    assert torch.allclose(one.reconstructions, again, atol=1e-4)
    assert torch.equal(one.correct, found.correct)
    assert torch.allclose(one.entropy, found.entropy, atol=1e-4)


def test_every_photo_shows_once_where_there_are_fewer_than_asked_for(quickly, runs):
    page, _ = quickly("toy_phase1 --data val --photos 20")
    held_out = ImageSet.open(runs / "val")
    assert page.labels == [held_out.name(i) for i in range(12)]
    assert spread(5, 5).tolist() == [0, 1, 2, 3, 4] and spread(9, 3).tolist() == [0, 3, 6]


@pytest.mark.parametrize("order", ["toy_nar toy_ar", "toy_ar toy_nar", "toy_nar"])
def test_samples_are_those_of_the_ar_run_if_there_is_one_and_say_so(quickly, runs, order):
    page, _ = quickly(f"{order} --data val --train train --num 70 --seed 5")
    kind = "AR" if "toy_ar" in order else "NAR"
    generator = load_generator(runs / f"toy_{kind.lower()}")
    codes = generator.sample(UNIT, torch.arange(UNIT) % 3, 5)
    images = to_float(to_uint8(load_tokenizer(runs / "toy_phase1").decode(codes)))
    (one,) = page.compared
    assert one.samples_by == kind
    assert torch.equal(one.samples, images[:16])


def test_shown_samples_are_the_measured_ones():
    """A unit is sampled as one whole, so a shorter one may differ in its last bits."""
    asked = []

    class Drawn:
        num = 1000

        def units(self, numbers):
            asked.extend(numbers)
            yield SimpleNamespace(pixels=torch.zeros(len(asked[-1]), 3, 4, 4, dtype=torch.uint8))

    assert side_by_side._first(Drawn()).shape == (16, 3, 4, 4)
    Drawn.num = 9
    assert side_by_side._first(Drawn()).shape == (9, 3, 4, 4)
    assert asked == [range(UNIT), range(9)]


def test_distances_of_few_images_say_so_on_the_page_on_the_terminal_and_in_the_file(
    quickly, at, capsys
):
    noisy(at / "13", (5, 4, 4))
    page, record = quickly(f"toy_ar --data val --train {at}/13 --num {WIDTH}")
    error = capsys.readouterr().err
    rows = {figure.name: figure.note for figure in page.figures}
    reconstructed, sampled = (
        f"no more images than the 12 features ({counts} 12): {names} biased upwards; compare at "
        "equal counts alone"
        for counts, names in (("photos", "rFID, prediction FID are"), ("samples", "AR FID is"))
    )
    assert record["warnings"] == [reconstructed, sampled]
    assert f"warning: {reconstructed}\n" in error and f"warning: {sampled}\n" in error
    assert rows["rFID"] == f"{ROWS['rFID'].note}; {reconstructed}"
    assert rows["prediction FID"].endswith(reconstructed) and rows["AR FID"].endswith(sampled)
    assert "biased" not in rows["PSNR"]


def test_enough_images_need_no_warning(quickly, at, capsys):
    _, record = quickly(f"toy_ar --data {noisy(at / '13', (5, 4, 4))} --train train --num 13")
    assert record["warnings"] == [] and "biased" not in capsys.readouterr().err
    assert few_images(["fid"], {"a": 12, "b": 13}, 12).startswith("no more images than the 12")
    assert few_images([], {"a": 1}, 12) == few_images(["fid"], {"a": 13}, 12) == ""


def test_facts_name_the_device_that_was_used(quickly, monkeypatch):
    used = []
    versions = compare_command.versions
    monkeypatch.setattr(
        compare_command, "versions", lambda device: used.append(device) or versions(CPU)
    )
    monkeypatch.setattr(compare_command, "resolve_device", lambda _: torch.device("cpu", 0))
    quickly("toy_phase1 --data val")
    assert used == [torch.device("cpu", 0)]


def test_two_different_photos_lie_half_of_the_set_apart(tmp_path, monkeypatch):
    data = noisy(tmp_path / "sorted", (100, 50, 50))  # neighbours are of one class
    source = FileImages(ImageSet.open(data), 16)
    numbers = torch.arange(200)
    found = between_photos(source, numbers, CPU)
    rows = spread(200, UNIT)
    first, second = (images_at(source, part) for part in (rows[:32], rows[32:]))
    expected = ImageDistances(CPU)(second, first)
    assert found == {name: float(expected[name].mean()) for name in ("lpips", "low", "semantic")}
    near = ImageDistances(CPU)(first.roll(1, 0), first)  # of one class
    assert found["low"] > 1.2 * float(near["low"].mean())
    assert between_photos(source, numbers[:1], CPU) == {}
    pair = ImageDistances(CPU)(images_at(source, numbers[180:181]), images_at(source, numbers[:1]))
    assert between_photos(source, numbers[::180], CPU)["low"] == pytest.approx(float(pair["low"]))


def test_a_single_photo_has_no_distance_from_another(quickly, at):
    data = photos(at / "val", per_class=1)
    source = FileImages(ImageSet.open(data), 16)
    assert between_photos(source, torch.tensor([2]), CPU) == {}
    _, record = quickly(f"toy_phase1 --data {data}")
    assert "between two different photos: low" in record["facts"]


def test_distances_between_photos_are_never_rounded_to_tf32(runs, monkeypatch):
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    allowed = []

    class Noting(ImageDistances):
        def __call__(self, found, wanted):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return super().__call__(found, wanted)

    monkeypatch.setattr(evaluated_photos, "ImageDistances", Noting)
    between_photos(FileImages(ImageSet.open(runs / "val"), 16), torch.arange(12), CPU)
    assert allowed == [False]


def test_the_small_transformer_trains_on_the_tokenizers_device(monkeypatch):
    devices = []

    said = []
    setting = Setting(progress=lambda title, *_: said.append(title))

    def small(codes, held_out, *_):
        devices.extend([codes.device.type, held_out.device.type])
        return 1.0

    codes = torch.zeros(4, 2, 2, dtype=torch.int64)
    monkeypatch.setattr(side_by_side, "small_transformer", small)
    monkeypatch.setattr(side_by_side, "encode_all", lambda *_: codes)
    tokenizer = SimpleNamespace(last_layer=torch.empty(1, device="meta"))
    whole = SimpleNamespace(codes=codes, num_codes=3)
    training = SimpleNamespace(source=None, seed=0)
    rows, counts = side_by_side.code_rows(tokenizer, whole, training, setting)
    assert devices == ["meta", "meta"] and "n-gram" in rows
    assert counts.tolist() == [16, 0, 0]
    assert said == ["n-grams of codes: fitting", "small transformer: training"]


def test_rows_say_what_they_are_to_be_read_beside():
    one = {"PSNR": Value(20.0, 0.1), "n-gram": Value(5.0, 0.1), SMALL: Value(6.0)}
    one |= {"prediction LPIPS": Value(0.3, 0.01), "held-out FID": Value(9.0, 0.1)}
    other = one | {SMALL: Value(4.0), "prediction LPIPS": Value(0.4, 0.01)}
    names, rows = ["a", "b"], [one, other]
    found = {f.name: f for f in table(names, rows, {}, {"lpips": 0.25}, 80, "12 photos")}
    assert found["prediction LPIPS"].baseline == 0.25
    assert found["prediction LPIPS"].marks() == ["", ""], "two photos lie closer"
    clear = {f.name: f for f in table(names, rows, {}, {"lpips": 0.35}, 80)}
    assert clear["prediction LPIPS"].marks() == ["best", ""]
    note = found[SMALL].note
    assert "500 steps of 32 images, drawn from 80 training images" in note and "minute" not in note
    assert "above the n-gram (a): under-trained" in note
    assert "two different photos: 0.250" in found["prediction LPIPS"].note
    assert "12 photos" in found["held-out FID"].note and found["held-out FID"].better is None


def test_photos_that_a_tokenizer_was_trained_on_are_not_called_held_out(quickly):
    page, record = quickly("toy_phase1 --data val")
    assert "given as held-out" in page.lead and "Warning" not in page.lead
    page, record = quickly("toy_phase1 --data train")
    assert record["warnings"][0] == "these photos are training images of toy_phase1"
    assert record["warnings"][0] in page.lead


def test_statistics_are_no_training_images(at, capsys):
    assert status("compare toy_phase1 --data val --train stats.npz --network vgg16") == 2
    assert "stats.npz: expected training images as --train" in capsys.readouterr().err


def test_guidance_without_dropped_classes_is_refused_before_anything_is_computed(
    at, runs, capsys, monkeypatch
):
    generator = load_generator(runs / "toy_ar")
    config = dataclasses.replace(generator.config, conditioning_dropout=0.0)
    monkeypatch.setattr(generator, "config", config)
    monkeypatch.setattr(compare_command, "load_generator", lambda _: generator)
    for more in ("--guidance 3", "--top-k 0"):
        assert status(f"compare toy_ar --data val --train train {more} --network nothing") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert re.search("--guidance: expected generators .* the AR run on toy_phase1", first), first
    assert "--top-k: expected at least 1, found 0" in second
    compare_command._check_sampling(
        open_entrants([runs / "toy_ar"], CPU), SimpleNamespace(guidance=1.0, top_k=None)
    )


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
        ("toy_ar --data train/red", "expected the classes 'blue', 'green', 'red'; found none"),
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


def test_an_autoencoder_is_refused_by_its_name_before_anything_is_computed(runs, monkeypatch):
    open_it = compare_command.open_tokenizer

    def without_codes(run, device):
        tokenizer = open_it(run, device)
        tokenizer.quantizer = UnquantizedConfig().build()
        return tokenizer

    monkeypatch.setattr(compare_command, "open_tokenizer", without_codes)
    with pytest.raises(ValueError, match="toy_phase1: expected a tokenizer, found an autoencoder"):
        open_entrants([runs / "toy_phase1"], CPU)


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
