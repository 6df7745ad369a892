"""Finished runs: one transformer, two decoders (Fig. 8); other code spaces refused."""

import pytest
import torch
from PIL import Image

from semvq.cli import main
from semvq.generators.files import load_generator
from semvq.runs import open_generator, open_tokenizer
from semvq.sample_commands import _columns
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_generator, toy_phase1, toy_phase2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = photos(folder / "photos")
    for recipe in (toy_phase1(), toy_phase2(), toy_generator("ar"), toy_generator("nar")):
        assert train_recipe(recipe, folder / recipe.name, data=data) is None
    assert train_recipe(toy_phase1(seed=1), folder / "other", data=data) is None
    return folder


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_one_transformer_draws_through_both_decoders(runs):
    images = []
    for decoder in ("toy_phase1", "toy_phase2"):
        generator, tokenizer, names = open_generator(runs / "toy_ar", runs / decoder, CPU)
        codes = generator.sample(2, torch.tensor([0, 1]), seed=3)
        images.append((codes, tokenizer.decode(codes)))
        assert names == ("blue", "green", "red")
    assert torch.equal(images[0][0], images[1][0])
    assert not torch.equal(images[0][1], images[1][1])


def test_a_decoder_of_another_code_space_is_refused(runs, capsys):
    assert status("sample", str(runs / "toy_ar"), "--decoder", str(runs / "other")) == 2
    first = open_tokenizer(runs / "toy_phase1", CPU).code_space_hash()[:16]
    other = open_tokenizer(runs / "other", CPU).code_space_hash()[:16]
    line = capsys.readouterr().err
    assert first in line and other in line and "--decoder" in line


def test_sample_writes_images_and_repeats_them_in_other_batches(runs, tmp_path):
    for name, size in (("a", "3"), ("b", "2")):
        out = str(tmp_path / name)
        run = str(runs / "toy_nar")
        assert status("sample", run, "--num", "3", "--class", "red", "--batch-size", size,
                      "--steps", "4", "--out", out) == 0  # fmt: skip
    for index in range(3):
        a, b = (Image.open(tmp_path / n / f"{index:06d}.png") for n in ("a", "b"))
        assert a.size == (16, 16) and a.tobytes() == b.tobytes()
    assert (tmp_path / "a" / "grid.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "toy_ar", "--class", "purple"], "expected a name among 'blue', 'green', 'red'"),
        (["sample", "toy_ar", "--class", "7"], "below 3"),
        (["sample", "toy_ar", "--steps", "4"], "--steps: expected a sampling option of toy_ar"),
        (["sample", "toy_ar", "--steps", "4"], "--temperature, --guidance, --guidance-schedule"),
        (["sample", "toy_nar", "--choice-temperature", "-1"], "choice_temperature"),
        (["sample", "toy_ar", "--num", "0"], "expected at least 1"),
        (
            ["sample", "toy_phase1"],
            "expected an AR or NAR run, found a tokenizer run; give one of: ",
        ),
        (["probe", "toy_nar", "--data", "photos"], "expected an AR run"),
        (["probe", "toy_phase1", "--data", "photos"], "found a tokenizer run"),
        (
            ["reconstruct", "toy_ar", "photos/red/0.png"],
            "expected a tokenizer run, found an AR run",
        ),
        (["encode", "toy_nar", "--data", "photos", "--out", "x"], "found a NAR run; give one of"),
        (["sample", "toy_ar", "--decoder", "toy_nar"], "toy_nar: expected a tokenizer run"),
        (["sample", "toy_arr"], "found no such folder; give one of: toy_ar, toy_nar"),
        (["reconstruct", "toy_phase1", "absent.png"], "absent.png"),
    ],
)
def test_mistakes_with_runs_are_one_line(runs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(runs)
    assert status(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1, err  # no bar before it either


def test_a_smaller_set_of_samples_leaves_nothing_of_a_larger_one(runs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    own = [out / "000042.png", out / "000001.jpg", out / "0000007.png", out / "x000001.png"]
    for path in own:
        path.write_text("somebody's own")
    (out / "000007.png").touch()
    command = ("sample", str(runs / "toy_nar"), "--steps", "1", "--out", str(out))
    assert status(*command, "--num", "7", "--batch-size", "3") == 0
    assert capsys.readouterr().err == "sampling: 7/7\n"  # piped: the last line alone
    (out / "000007.png").unlink()  # still there: files beside which no grid lay are not ours
    side, gap = 16, 2
    three = (3 * (side + gap) - gap, 3 * (side + gap) - gap)
    assert Image.open(out / "grid.png").size == three, "a column per class"
    assert status(*command, "--num", "2", "--class", "red") == 0
    assert Image.open(out / "grid.png").size == (2 * (side + gap) - gap, side)
    left = {p.name for p in out.iterdir()} - {p.name for p in own}
    assert left == {"000000.png", "000001.png", "grid.png"}
    assert all(path.exists() for path in own), "numbers that do not follow are not ours"


@pytest.mark.parametrize(
    ("num", "num_classes", "columns"),
    [(16, 5, 5), (3, 5, 3), (40, 16, 16), (40, 17, 8), (40, 0, 8), (5, 1000, 5)],
)
def test_columns_of_the_sheet(num, num_classes, columns):
    assert _columns(num, num_classes) == columns


@pytest.mark.parametrize("kind", ["toy_ar", "toy_nar"])
def test_both_kinds_take_top_k(runs, tmp_path, kind):
    """As `semvq sample --help` says; with one code left, the noise has no say."""
    codes = []
    for seed in (0, 1):
        generator = load_generator(runs / kind)
        more = {"choice_temperature": 0.0} if kind == "toy_nar" else {}
        codes.append(generator.sample(2, torch.tensor([0, 1]), seed=seed, top_k=1, **more))
    assert torch.equal(*codes)


def test_encode_then_train_from_the_cache(runs, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    assert status("encode", str(runs / "toy_phase1"), "--data", str(runs / "photos"), "--views",
                  "3", "--out", cache) == 0  # fmt: skip
    recipe = toy_generator("ar")
    out = tmp_path / "ar"
    stopped = train_recipe(recipe, out, tokens=tmp_path / "cache", upstream=runs / "toy_phase1")
    assert stopped is None and not (out / "tokens").exists()
    with pytest.raises(ValueError, match="code space"):
        train_recipe(recipe, tmp_path / "b", tokens=tmp_path / "cache", upstream=runs / "other")
