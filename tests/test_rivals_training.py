"""The rivals' codes in the real loop: a stop and a bitwise resume; k-means in two processes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semvq.losses.perceptual import NO_PERCEPTUAL
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.kmeans import KMeansQuantizer, KMeansQuantizerConfig
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.rivals.residual import ResidualQuantizerConfig
from semvq.tokenizer.files import load_tokenizer
from semvq.training.recipe import Recipe
from semvq.training.runs import train_recipe
from tests.forks import together
from tests.test_training import assert_same_run, everything, forget_the_end
from tests.toy import photos, toy_phase1

CODES = {
    "kmeans": KMeansQuantizerConfig(num_codes=16, code_dim=8, every=2, until=4, kept=160),
    "residual": ResidualQuantizerConfig(num_codes=16, code_dim=8, depth=3),
    "factorized": FactorizedQuantizerConfig(num_codes=16, code_dim=8, factor_dim=4),
    "multichannel": MultichannelQuantizerConfig(num_codes=16, code_dim=8, channels=2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


def recipe(kind: str, **changes: object) -> Recipe:
    """Six steps of four images in two parts, 64 places a step."""
    base = toy_phase1(accumulate=2, save_every="3 steps", **changes)
    tokenizer = replace(base.task.tokenizer, quantizer=CODES[kind])
    task = replace(base.task, tokenizer=tokenizer, perceptual=NO_PERCEPTUAL, adversarial=None)
    return replace(base, name=f"toy_{kind}", task=task)


@pytest.mark.parametrize("kind", CODES)
def test_resume_is_bitwise(tmp_path, data, kind, monkeypatch):
    estimated, estimate = [], KMeansQuantizer.estimate
    monkeypatch.setattr(
        KMeansQuantizer, "estimate", lambda self: estimated.append(self) or estimate(self)
    )
    for name in ("whole", "cut"):
        assert train_recipe(recipe(kind), tmp_path / name, data=data) is None
    forget_the_end(tmp_path / "cut", images_seen=12)
    assert train_recipe(recipe(kind), tmp_path / "cut", data=data) is None
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    # steps two and four, and of the resumed run the fourth: steps are counted, not parts
    assert len(estimated) == (5 if kind == "kmeans" else 0)
    if kind == "kmeans":
        counts = everything(tmp_path / "whole")["task.quantizer.kmeans_counts"]
        assert counts.tolist() == [4, 3 * 64 + 32], "nothing is noted after the last estimate"


@pytest.mark.parametrize("kind", CODES)
def test_trained_codes_come_back_from_the_run(tmp_path, data, kind):
    train_recipe(recipe(kind, duration="2 steps"), tmp_path / "run", data=data)
    trained = load_tokenizer(tmp_path / "run")
    assert trained.config.quantizer == CODES[kind]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = trained.encode(images)
    assert codes.shape == (2, *trained.grid)
    assert torch.equal(trained.decode(codes), trained(images)[0])


def test_a_step_that_is_skipped_leaves_no_trace_in_the_next_estimate(tmp_path, data, monkeypatch):
    forward = KMeansQuantizer.forward

    def poisoned(self, latents):
        if self.training and self.counts[0] == 2:  # in the third step
            latents = latents * torch.tensor([torch.nan, 1.0]).view(2, 1, 1, 1)
        return forward(self, latents)

    monkeypatch.setattr(KMeansQuantizer, "forward", poisoned)
    train_recipe(recipe("kmeans"), tmp_path / "run", data=data)
    found = everything(tmp_path / "run")
    assert not found["task.quantizer.kmeans_rows"].isfinite().all()
    assert all(t.isfinite().all() for k, t in found.items() if k.startswith("module."))


RECIPES = Path(__file__).parent / "kmeans_recipes.py"


def run_in_two(folder: Path, data: Path) -> None:
    folder.mkdir(exist_ok=True)
    line = ["train", f"{RECIPES}:two_kmeans", "--data", str(data), "--device", "cpu"]
    found = together(2, [*line, "--out", str(folder / "two_kmeans")], folder)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_two_processes_have_one_codebook_and_resume_bitwise(tmp_path, data):
    run_in_two(tmp_path / "whole", data)
    whole, cut = (tmp_path / name / "two_kmeans" for name in ("whole", "cut"))
    books = [torch.load(whole / f"codebook-{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*books) and books[0].isfinite().all()
    state = everything(whole)
    kept = state["task.quantizer.kmeans_rows"]
    assert kept.shape == (2 * 80, 8) and not torch.equal(*kept.chunk(2))
    assert state["task.quantizer.kmeans_counts"].tolist() == [4, 3 * 32 + 16] * 2

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    forget_the_end(cut, images_seen=12)
    run_in_two(tmp_path / "cut", data)
    assert_same_run(whole, cut)
    assert torch.equal(torch.load(cut / "codebook-1.pt"), books[1])
