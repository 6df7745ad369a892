"""What a run was made of is kept: a finished one and a stopped one refuse other inputs, by name."""

import json
import re
import shutil
from pathlib import Path

import pytest

from semvq.data.images import ImageSet
from semvq.tokenizer.model import TokenizerConfig
from semvq.training.generator_task import GeneratorTask
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_generator, toy_phase1, toy_phase2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three finished runs, and what they were not made of."""
    place = tmp_path_factory.mktemp("finished")
    data = photos(place / "photos")
    photos(place / "other", per_class=9, seed=1)
    photos(place / "held_out", per_class=2, seed=2)
    for recipe in (toy_phase1(), toy_phase2(), toy_generator("ar")):
        assert train_recipe(recipe, place / "runs" / recipe.name, data=data) is None
    elsewhere = place / "elsewhere"
    assert train_recipe(toy_phase1(seed=1), elsewhere / "toy_phase1", data=data) is None
    ar = toy_generator("ar")
    assert train_recipe(ar, elsewhere / "toy_ar", data=data) is None
    other = place / "of_other"
    upstream = place / "runs" / "toy_phase1"
    assert train_recipe(ar, other, data=place / "other", upstream=upstream) is None
    return place


RUNS = {"toy_phase1": toy_phase1, "toy_phase2": toy_phase2, "toy_ar": lambda: toy_generator("ar")}


def refusal(place: Path, name: str, **given: str) -> str:
    paths = {key: place / path for key, path in given.items()}
    with pytest.raises(ValueError) as refused:
        train_recipe(RUNS[name](), place / "runs" / name, **paths)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", RUNS)
def test_other_images_are_refused_with_both_sides_named(place, name):
    line = refusal(place, name, data="other")
    sides = re.findall(r"data ([0-9a-f]{16}) \((\d+) images in 3 classes of (\S+)\)", line)
    sides += re.findall(r"run has ([0-9a-f]{16}) \((\d+) images in 3 classes of (\S+)\)", line)
    assert len(sides) == 2 and len({side[0] for side in sides}) == 2, line
    assert [side[2] for side in sides] == [str(place / "photos"), str(place / "other")]
    num = sum(len(list((place / "photos" / c).iterdir())) for c in ("red", "green", "blue"))
    assert 0 < int(sides[0][1]) < num, "the training share"
    assert "another --out" in line


@pytest.mark.parametrize("name", RUNS)
def test_other_held_out_images_are_refused(place, name):
    assert "held-out data" in refusal(place, name, val="held_out")
    line = refusal(place, name, data="photos", val="held_out")
    assert "finished, and was made with data" in line, "the share held out before is now trained on"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("toy_phase2", {"upstream": "elsewhere/toy_phase1"}, "upstream run"),
        ("toy_ar", {"upstream": "elsewhere/toy_phase1"}, "code space"),
        ("toy_ar", {"tokens": "elsewhere/toy_ar/tokens"}, "code space"),
        ("toy_ar", {"tokens": "of_other/tokens"}, "data"),
    ],
)
def test_another_upstream_or_cache_is_refused(place, name, given, words):
    line = refusal(place, name, **given)
    assert f"was made with {words} " in line
    if "upstream" in given:
        assert str(place / "elsewhere" / "toy_phase1") in line
        assert str(place / "runs" / "toy_phase1") in line
    if given.get("tokens", "").startswith("of_other"):
        assert str(place / "photos") in line and str(place / "other") in line, "where images lie"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("toy_phase1", {}),
        ("toy_phase1", {"data": "photos"}),
        ("toy_phase1", {"data": "moved"}),
        ("toy_phase2", {"upstream": "runs/toy_phase1"}),
        ("toy_ar", {"data": "photos", "tokens": "runs/toy_ar/tokens"}),
        ("toy_ar", {"upstream": "runs/toy_phase2"}),  # the same code space
    ],
)
def test_the_same_inputs_are_quick_and_quiet(place, monkeypatch, capfd, name, given):
    def build(self):
        raise AssertionError("a network was built")

    if not (place / "moved").exists():
        shutil.copytree(place / "photos", place / "moved")
    monkeypatch.setattr(TokenizerConfig, "build", build)
    monkeypatch.setattr(GeneratorTask, "__init__", build)
    paths = {key: place / path for key, path in given.items()}
    assert train_recipe(RUNS[name](), place / "runs" / name, **paths) is None
    assert capfd.readouterr() == ("", "")


def test_an_upstream_run_that_was_made_anew_in_its_place_is_noticed(place, tmp_path):
    shutil.copytree(place / "runs" / "toy_phase2", tmp_path / "toy_phase2")
    assert train_recipe(toy_phase2(), tmp_path / "toy_phase2") is None, "none there: no check"
    shutil.copytree(place / "elsewhere" / "toy_phase1", tmp_path / "toy_phase1")
    with pytest.raises(ValueError, match="made with upstream run"):
        train_recipe(toy_phase2(), tmp_path / "toy_phase2")


@pytest.mark.parametrize("text", ["0123456789abcdef\n", "1234567890123456\n", "", "[]", '{"a": 1}'])
def test_folders_of_older_versions_are_finished_without_a_check(place, tmp_path, text):
    run = tmp_path / "toy_phase1"
    shutil.copytree(place / "runs" / "toy_phase1", run)
    (run / "finished").write_text(text)
    assert train_recipe(toy_phase1(), run, data=place / "other") is None


def stopped(place: Path, tmp_path: Path, name: str) -> Path:
    run = tmp_path / name
    shutil.copytree(place / "runs" / name, run)
    (run / "finished").unlink()
    return run


def test_a_stopped_run_names_place_and_number_of_images(place, tmp_path):
    run = stopped(place, tmp_path, "toy_phase1")
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with") as refused:
        train_recipe(toy_phase1(), run, data=place / "other")
    line = str(refused.value)
    train = len(ImageSet.open(place / "photos")) - 6
    assert f"({train} images in 3 classes of {place / 'photos'})" in line
    assert f"of {place / 'other'})" in line
    assert not re.search(r"[0-9a-f]{17}", line), "short hashes"


def test_a_cache_of_other_images_or_codes_names_both(place, tmp_path):
    run = stopped(place, tmp_path, "toy_ar")
    upstream = place / "runs" / "toy_phase1"
    with pytest.raises(ValueError, match="expected codes of this run's images") as refused:
        train_recipe(toy_generator("ar"), run, data=place / "other", upstream=upstream)
    assert f"of {place / 'photos'})" in str(refused.value)
    assert f"of {place / 'other'})" in str(refused.value)
    other = place / "elsewhere" / "toy_phase1"
    with pytest.raises(ValueError, match="code space") as refused:
        train_recipe(toy_generator("ar"), run, tokens=run / "tokens", upstream=other)
    assert str(other) in str(refused.value) and not re.search("[0-9a-f]{17}", str(refused.value))


def test_checkpoints_of_older_versions_are_resumed(place, tmp_path):
    """Their facts are hashes without words, and fewer."""
    from semvq.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

    run = stopped(place, tmp_path, "toy_phase1")
    tensors, scalars = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    facts = {name: value for name, (value, _) in scalars["identity"].items()}
    del facts["held-out data"]
    scalars["identity"] = facts | {"code space": "in training"}
    save_checkpoint(run / "checkpoints", scalars["images_seen"], tensors, scalars, keep=1)
    assert train_recipe(toy_phase1(), run, data=place / "photos") is None
    assert json.loads((run / "finished").read_text())["identity"]["data"][0] == facts["data"]
    scalars["identity"] = facts | {"data": "0" * 64}
    save_checkpoint(run / "checkpoints", scalars["images_seen"], tensors, scalars, keep=1)
    (run / "finished").unlink()
    with pytest.raises(ValueError, match="made with data 0000000000000000, this run has"):
        train_recipe(toy_phase1(), run, data=place / "photos")
