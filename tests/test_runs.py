"""Finished runs: one transformer, two decoders (Fig. 8); other code spaces refused."""

import pytest
import torch
from PIL import Image

from semvq.cli import main
from semvq.runs import open_generator, open_tokenizer
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
        (["sample", "toy_ar", "--class", "purple"], "expected a name among blue, green, red"),
        (["sample", "toy_ar", "--class", "7"], "below 3"),
        (["sample", "toy_ar", "--steps", "4"], "sampling option"),
        (["sample", "toy_nar", "--choice-temperature", "-1"], "choice_temperature"),
        (["sample", "toy_ar", "--num", "0"], "expected at least 1"),
        (["sample", "toy_phase1"], "generator"),
        (["probe", "toy_nar", "--data", "photos"], "expected an AR run"),
        (["reconstruct", "toy_ar", "photos/red/0.png"], "tokenizer"),
        (["reconstruct", "toy_phase1", "absent.png"], "absent.png"),
    ],
)
def test_mistakes_with_runs_are_one_line(runs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(runs)
    assert status(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and "Traceback" not in err


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
