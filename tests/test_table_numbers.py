"""What `semvq table` takes from its folder: runs, measurements and statistics of these, no others.

Trainings and measurements are stand-ins here: a run is a tensor, a figure is anything.
"""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semvq import table_command, table_numbers
from semvq.assets import tensors_hash
from semvq.cli import main
from semvq.data.images import ImageSet
from semvq.evaluation.feature_sets import FeatureSet
from semvq.evaluation.frechet import Gaussian
from semvq.evaluation.reference import save_reference
from semvq.evaluation.sources import FileImages
from semvq.files import WEIGHTS, sha256_of
from semvq.recipes import find_recipe
from semvq.training.runs import _write_recipe, read_recipe
from tests.toy import photos

FACTS = {"network": "n", "weights": "w", "device": "d", "semvq": "s", "torch": "t"}


class StandIns:
    """What was trained, and what was measured of which decoder, in this order."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.measured: list[str] = []

    def train(self, recipe, folder: Path, **given: object) -> None:
        if not folder.exists():
            _write_recipe(recipe, folder)
            give_weights(folder, len(self.trained))
            self.trained.append(folder.name)

    def measure(self, options):
        run = options.run
        own = read_recipe(run).upstream if options.protocol == "generation" else run.name
        drawn_by = options.decoder or run.parent / own
        self.measured.append(f"{run.name} by {drawn_by.name}")
        tokenizer = tensors_hash(load_file(drawn_by / WEIGHTS))
        facts = FACTS | {"model": sha256_of(run / WEIGHTS), "tokenizer": tokenizer}
        return {"figures": {"rfid": 1.0, "codebook_usage": 1.0, "fid": 2.0}, "facts": facts}

    def again(self) -> list[str]:
        """What was measured since the last call."""
        found, self.measured = self.measured, []
        return found


def give_weights(run: Path, value: float) -> None:
    save_file({"w": torch.tensor([float(value)])}, run / WEIGHTS)


@pytest.fixture
def done(monkeypatch) -> StandIns:
    found = StandIns()
    monkeypatch.setattr(table_command, "train_recipe", found.train)
    monkeypatch.setattr(table_command, "_fetch_weights", lambda *given: None)
    monkeypatch.setattr(table_numbers, "measure", found.measure)
    return found


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["table", *map(str, words)])
    return stop.value.code


def test_a_measurement_of_other_weights_is_made_again(done, tmp_path):
    rows = ("AR, 1st phase", "AR, 2nd phase")
    words = ("fig8", "--scale", "tiny", "--rows", *rows, "--out", tmp_path)
    assert run(*words) == 0
    own, second = "tiny48_sem_ar by tiny48_sem", "tiny48_sem_ar by tiny48_sem_phase2"
    assert done.again() == [own, second]
    assert run(*words) == 0 and done.again() == []
    give_weights(tmp_path / "seed0/tiny48_sem_phase2", 70)
    assert run(*words) == 0 and done.again() == [second]
    give_weights(tmp_path / "seed0/tiny48_sem", 71)
    assert run(*words) == 0 and done.again() == [own]
    give_weights(tmp_path / "seed0/tiny48_sem_ar", 72)
    assert run(*words) == 0 and done.again() == [own, second]
    assert run("6", *words[1:3], "--rows", "L_sem", "--columns", "AR", "rFID", *words[-2:]) == 0
    assert done.again() == ["tiny48_sem by tiny48_sem"]  # of AR's samples Fig. 8 has the number
    assert run(*words) == 0 and done.again() == []


def test_a_line_says_how_many_images_the_runs_before_it_saw(done, tmp_path):
    rows, file = ("AR, 1st phase", "AR, 2nd phase"), tmp_path / "numbers.csv"
    words = ("fig8", "--scale", "tiny", "--rows", *rows, "--out", tmp_path, "--csv", file)
    assert run(*words) == 0
    own, second = csv.DictReader(file.open())
    assert (own["decoder"], second["decoder"]) == ("", "tiny48_sem_phase2")

    def images(name: str) -> int:
        return int(find_recipe(name).loop.duration.removesuffix(" images"))

    before = images("tiny48_autoencoder") + images("tiny48_sem")
    assert int(own["images_seen"]) == int(second["images_seen"]) == images("tiny48_sem_ar")
    assert int(own["images_seen_before"]) == before
    assert int(second["images_seen_before"]) == before + images("tiny48_sem_phase2")


@pytest.mark.parametrize("table", ["3", "fig8"])
def test_lsun_starts_from_a_run_of_imagenets_that_is_there(table, done, tmp_path, capsys):
    data = photos(tmp_path / "churches", per_class=1)
    words = (table, "--scale", "paper", "--dataset", "lsun_church256", "--data", data)
    words = (*words, "--val", data, "--seeds", 0, 1, "--out", tmp_path / "out")
    assert run(*words, "--dry-run") == 0
    assert "imagenet256_phase1" in capsys.readouterr().out
    given = [tmp_path / f"out/seed{seed}/imagenet256_phase1" for seed in (0, 1)]
    for place, seeded in zip(given, ("", " --set loop.seed=1")):
        assert run(*words) == 2 and done.trained == []
        assert capsys.readouterr().err == (
            f"semvq: error: {place}: expected a finished run of recipe imagenet256_phase1, which "
            "--data with images of lsun_church256 cannot make, found none that is whole; make "
            f"it with: semvq train imagenet256_phase1 --data IMAGENET --out {place}{seeded}\n"
        )
        _write_recipe(find_recipe("imagenet256_phase1"), place)
        give_weights(place, 0)
    assert run(*words) == 0
    assert "lsun_church256_tokenizer" in done.trained and "imagenet256_phase1" not in done.trained


def test_statistics_of_other_images_are_refused_before_anything_is_trained(done, tmp_path, capsys):
    first, other = (photos(tmp_path / n, per_class=k) for n, k in (("first", 1), ("other", 2)))
    file = tmp_path / "out/tiny48-inception.npz"
    facts = {"source": FileImages(ImageSet.open(first), 48).facts()}
    gaussian = Gaussian(torch.zeros(2), torch.eye(2), 3)
    save_reference(FeatureSet(gaussian, None, None, facts), file)
    words = ("6", "--scale", "tiny", "--rows", "L_low", "--out", tmp_path / "out", "--val", first)
    assert run(*words, "--data", other, "--seeds", 1) == 2 and done.trained == []
    said = capsys.readouterr().err
    assert f"{file}: expected statistics of {other} (fingerprint " in said
    assert f"found those of {first} (" in said and said.endswith("; give another --out\n")
    assert run(*words, "--data", other, "--columns", "rFID") == 0  # which needs none
    assert run(*words, "--data", first, "--seeds", 1) == 0


def test_a_cell_says_of_how_many_seeds_it_is():
    def text(*values: float | None) -> str:
        return table_command._text([{"value": v, "published": 3.45} for v in values])

    assert text(2.0, 4.0) == r"3 (2 to 4) \[3.45]"
    assert text(2.0, None, 4.0) == r"3 (2 to 4, 2 of 3 seeds) \[3.45]"
    assert text(None, 4.0) == r"4 (1 of 2 seeds) \[3.45]"
    assert text(4.0) == r"4 \[3.45]" and text(None) == r"– \[3.45]"
