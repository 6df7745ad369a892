"""The demo, shortened: every stage, the figures and the page."""

import json
import re
import subprocess
import sys

import pytest

from semvq.data.images import ImageSet
from semvq.demo.figures import attention_verdict
from semvq.demo.story import (
    SPARSEST,
    STAGES,
    _say_where_to_look,
    run_demo,
    scaled,
    shortened,
    some_photos,
    sparseness,
)
from semvq.photos import fruit
from semvq.recipes.fruit import fruit_phase1


def test_minutes_scale_whole_steps():
    recipe = fruit_phase1()
    half = scaled(recipe, 0.5, seed=3)
    images = int(recipe.loop.duration.split()[0])
    assert half.loop.seed == 3
    assert int(half.loop.duration.split()[0]) == pytest.approx(images / 2, abs=16)
    assert scaled(recipe, 1e-9, seed=0).loop.duration == f"{2 * recipe.loop.batch_size} images"


def test_another_length_in_the_same_folder_is_refused_by_its_option(tmp_path):
    (tmp_path / "demo.json").write_text('{"minutes": 9.0, "seed": 0}')
    with pytest.raises(ValueError, match="expected --minutes 9 .* found 60.*another --out"):
        run_demo(tmp_path, minutes=60, seed=0, device="cpu")
    with pytest.raises(ValueError, match="expected --seed 0 .* found 1"):
        run_demo(tmp_path, minutes=9, seed=1, device="cpu")


def test_the_verdict_claims_no_more_than_a_seed_can_show():
    for gain in (0.0005, -0.0001):
        assert attention_verdict(gain).startswith("attention decoder and equal-images control do n")
    assert "ahead of the equal-images control by 0.0300 LPIPS, one seed" in attention_verdict(0.03)
    assert "behind" in attention_verdict(-0.03)


@pytest.mark.parametrize("minutes", [0.3, 4.0, 4.5, 9.0, 60.0])
def test_a_shortened_demo_takes_its_claims_back(minutes):
    metrics = {"reconstruction": {"attention_verdict": "better", "fruit_phase1": {}}}
    changed = shortened(metrics, minutes)
    assert bool(changed) == (minutes < 4.5)
    if changed:
        assert f"SHORTENED, to {minutes:g} of 9 minutes" in changed["shortened"]
        assert changed["reconstruction"]["attention_verdict"] == "this run is too short to tell"
        assert "fruit_phase1" in changed["reconstruction"]


@pytest.mark.parametrize(
    "minutes, every", [(0.1, 8), (0.5, 8), (1.0, 4), (2.0, 2), (3.0, 1), (4.5, 1), (9.0, 1)]
)
def test_a_shortened_demo_says_how_few_photos_it_takes(tmp_path, minutes, every):
    assert sparseness(minutes) == every
    said = shortened({"reconstruction": {}}, minutes).get("shortened", "")
    assert (f"minutes, with one of {every} photos and samples:" in said) == (every > 1)
    chosen = some_photos(tmp_path, every)
    for all_photos, some in zip(map(ImageSet.open, fruit()), map(ImageSet.open, chosen)):
        assert len(some) == -(-len(all_photos) // every)
        assert some.classes == all_photos.classes and len(set(some.labels)) == 14
    assert (chosen == fruit()) == (every == 1)


def test_the_last_lines_lead_to_ones_own_photos(tmp_path, capsys):
    _say_where_to_look(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    trained = [line.split()[2] for line in lines if line.startswith("  semvq train")]
    assert trained == ["labelled64_autoencoder", "photos128_autoencoder", "fruit_autoencoder"]
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line)


@pytest.mark.slow
def test_short_demo_from_start_to_report(tmp_path):
    # in a process of its own, on one thread: two would wait for each other beside other tests
    command = [sys.executable, "-m", "semvq", "demo", "--out", str(tmp_path), "--minutes", "0.1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    for number, (title, _) in enumerate(STAGES, 1):
        found = re.findall(
            rf"^{number}/6 {re.escape(title)}: (\d+)/\1 images, .*$", result.stderr, re.M
        )
        assert len(found) == 1, (title, result.stderr)
    last = [x for x in result.stderr.splitlines() if x.startswith("5/6")][-1]
    assert "val/cross_entropy" in last
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["codes"]["changed_by_phase2"] == 0
    assert metrics["codes"]["same_code_space_hash"] is True
    assert metrics["num_held_out"] == -(-231 // SPARSEST)
    assert metrics["class_agreement"]["num_samples"] == 14
    assert set(metrics["class_agreement"]) >= {"ar", "nar", "unigram", "class_unigram", "chance"}
    page = (tmp_path / "report.html").read_text()
    assert f"one of {SPARSEST} photos and samples" in page
    assert page.index("THIS DEMO WAS SHORTENED") < page.index("<h2>")
    assert page.count("data:image/png;base64,") == 8
    assert "http://" not in page and "https://" not in page
    names = {p.stem for p in (tmp_path / "pictures").glob("*.png")}
    assert names >= {"reconstruction", "probe", "samples_ar", "samples_nar"}
