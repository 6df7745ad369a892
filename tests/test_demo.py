"""The demo, shortened: every stage, the figures and the page."""

import json
import os
import subprocess
import sys

import pytest

from semvq.demo.story import run_demo, scaled
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


@pytest.mark.slow
def test_short_demo_from_start_to_report(tmp_path):
    # in a process of its own, with all the machine's threads
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "semvq", "demo", "--out", str(tmp_path), "--minutes", "0.2"]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["codes"]["changed_by_phase2"] == 0
    assert metrics["codes"]["same_code_space_hash"] is True
    assert metrics["num_held_out"] > 200
    assert set(metrics["class_agreement"]) >= {"ar", "nar", "unigram", "class_unigram", "chance"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "http://" not in page and "https://" not in page
    names = {p.stem for p in (tmp_path / "pictures").glob("*.png")}
    assert names >= {"reconstruction", "probe", "samples_ar", "samples_nar"}
