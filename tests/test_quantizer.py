"""Nearest code against brute force, straight-through, usage entropy (reliability: Quantizer)."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from semvq.config import from_dict, to_dict
from semvq.losses.codebook import distances, soft_usage, usage_entropy
from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import (
    Quantized,
    Quantizer,
    QuantizerConfig,
    VectorQuantizer,
    VectorQuantizerConfig,
    straight_through,
)
from semvq.tokenizer.usage import UsageCounter


def brute_force(rows: Tensor, codebook: Tensor) -> Tensor:
    parts = [
        (part.double()[:, None] - codebook.double()).square().sum(2).argmin(1)
        for part in rows.split(1000)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("num_codes", [1, 2, 1023])
def test_codes_equal_float64_brute_force(num_codes):
    torch.manual_seed(0)
    codebook = torch.randn(num_codes, 8)
    rows = torch.randn(4000, 8)
    assert torch.equal(nearest_code(rows, codebook), brute_force(rows, codebook))


@pytest.mark.slow
def test_codes_equal_float64_brute_force_on_many_rows():
    torch.manual_seed(0)
    codebook, rows = torch.randn(512, 16), torch.randn(100_000, 16)
    assert torch.equal(nearest_code(rows, codebook), brute_force(rows, codebook))


def near_ties(offset: float) -> tuple[Tensor, Tensor]:
    """Rows half way between two codes, up to about one rounding, far from the origin."""
    torch.manual_seed(1)
    codebook = torch.randn(64, 32) + offset
    pairs = torch.randint(64, (1000, 2))
    rows = codebook[pairs].mean(1) + 1e-7 * torch.randn(1000, 32)
    return rows, codebook


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_near_ties_are_decided_in_float64(offset):
    rows, codebook = near_ties(offset)
    expected = brute_force(rows, codebook)
    assert torch.equal(nearest_code(rows, codebook), expected)
    scores = codebook.square().sum(1) - 2 * rows @ codebook.t()
    # The test has teeth: fp32 alone gets some of these wrong.
    assert (scores.argmin(1) != expected).any()


def test_near_ties_survive_a_lower_matmul_precision():
    rows, codebook = near_ties(0.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest_code(rows, codebook), brute_force(rows, codebook))
    finally:
        torch.set_float32_matmul_precision(before)


def test_ties_go_to_the_lowest_index():
    torch.manual_seed(0)
    base = torch.randn(37, 24)
    rows = base[torch.randint(37, (500,))] + 0.01 * torch.randn(500, 24)
    assert nearest_code(rows, base.repeat(3, 1)).max() < 37
    assert nearest_code(rows, torch.ones(9, 24)).eq(0).all()


def test_codes_do_not_depend_on_chunks_or_autocast(monkeypatch):
    rows, codebook = near_ties(0.0)
    whole = nearest_code(rows, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(rows, codebook), whole)
    monkeypatch.setattr("semvq.tokenizer.nearest._CHUNK", 64 * 7)
    assert torch.equal(nearest_code(rows, codebook), whole)


def test_latents_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expected latents of width 4, found 3"):
        nearest_code(torch.zeros(2, 3), torch.zeros(5, 4))


def test_not_finite_latents_get_a_valid_code():
    rows = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [0.0, 0.0]])
    codes = nearest_code(rows, torch.randn(5, 2))
    assert codes.ge(0).all() and codes.lt(5).all()


def quantizer(num_codes: int = 16, dim: int = 4, **settings: Any) -> VectorQuantizer:
    torch.manual_seed(3)
    return VectorQuantizerConfig(num_codes=num_codes, code_dim=dim, **settings).build()


def test_straight_through_gradient_is_the_identity():
    q = quantizer()
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = q(latents)
    gradient = torch.randn_like(latents)
    out.embeddings.backward(gradient)
    assert torch.equal(latents.grad, gradient)
    assert q.codebook.grad is None
    assert torch.equal(out.embeddings, q.lookup(out.codes))
    assert torch.equal(q.encode(latents), out.codes)


def test_losses_are_eq_2_and_reach_the_right_side():
    q = quantizer(entropy_weight=0.0)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = q(latents)
    assert set(out.losses) == {"codebook", "commitment"}
    expected = (latents - q.lookup(out.codes)).square().mean().item()
    assert out.losses["codebook"].item() == pytest.approx(expected, rel=1e-5)
    assert q.total(out.losses).item() == pytest.approx(1.25 * expected, rel=1e-5)
    (at_codes,) = torch.autograd.grad(out.losses["codebook"], q.codebook, retain_graph=True)
    assert at_codes.abs().sum() > 0
    (at_latents,) = torch.autograd.grad(out.losses["commitment"], latents, retain_graph=True)
    assert at_latents.abs().sum() > 0
    assert not torch.autograd.grad(
        out.losses["codebook"], latents, allow_unused=True, retain_graph=True
    )[0]
    assert not torch.autograd.grad(out.losses["commitment"], q.codebook, allow_unused=True)[0]


@pytest.mark.parametrize("distance", ["l2", "l2_squared"])
def test_soft_usage_is_the_papers_formula(distance, monkeypatch):
    torch.manual_seed(0)
    rows, codebook = torch.randn(30, 5), torch.randn(7, 5)
    d = torch.cdist(rows.double(), codebook.double())
    d = d if distance == "l2" else d.square()
    expected = (torch.exp(-d) / torch.exp(-d).sum(1, keepdim=True)).mean(0)
    found = soft_usage(rows, codebook, distance, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    entropy = -(expected * expected.log()).sum().item()
    assert usage_entropy(found).item() == pytest.approx(entropy, rel=1e-5)
    codebook.requires_grad_()
    whole = torch.autograd.grad(usage_entropy(soft_usage(rows, codebook, distance, 1.0)), codebook)
    monkeypatch.setattr("semvq.losses.codebook._CHUNK", 7 * 4)
    parts = torch.autograd.grad(usage_entropy(soft_usage(rows, codebook, distance, 1.0)), codebook)
    torch.testing.assert_close(whole[0], parts[0])


def test_entropy_is_finite_when_latents_sit_on_codes():
    codebook = torch.randn(6, 3)
    for rows in (codebook.clone(), torch.zeros(6, 3), 1e4 * torch.randn(6, 3)):
        rows.requires_grad_()
        for distance in ("l2", "l2_squared"):
            q = quantizer(6, 3, entropy_weight=1.0, entropy_distance=distance)
            q.codebook.data.copy_(codebook)
            out = q(rows.t().reshape(1, 3, 6, 1))
            (gradient,) = torch.autograd.grad(q.total(out.losses), rows)
            assert gradient.isfinite().all() and distances(rows, codebook, distance).min() >= 0


def test_all_latents_equal_or_one_code_is_no_accident():
    for num_codes in (1, 2, 8):
        q = quantizer(num_codes, 4, entropy_weight=0.1)
        latents = torch.ones(2, 4, 3, 3, requires_grad=True)
        q.initialize(latents)
        out = q(latents)
        q.total(out.losses).backward()
        assert out.codes.unique().numel() == 1
        assert latents.grad.isfinite().all() and q.codebook.grad.isfinite().all()


def test_data_scale_makes_the_entropy_independent_of_the_latents_size():
    values = []
    for size in (1e-2, 1.0, 1e2):
        q = quantizer(entropy_weight=1.0)
        torch.manual_seed(5)
        latents = torch.randn(2, 4, 6, 6) * size
        q.initialize(latents)
        values.append(q(latents).losses["entropy"].item())
    assert max(values) - min(values) < 1e-3
    assert -math.log(16) < values[0] < 0


def usage_after_training(weight: float) -> float:
    """Train a codebook, most of whose codes start far away, on fixed latents."""
    torch.manual_seed(0)
    q = VectorQuantizerConfig(num_codes=64, code_dim=8, entropy_weight=weight).build()
    latents = torch.randn(8, 8, 8, 8)
    q.codebook.data.normal_(2.0, 1.0)
    optimizer = torch.optim.Adam(q.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        q.total(q(latents).losses).backward()
        optimizer.step()
    counter = UsageCounter(64)
    counter.update(q.encode(torch.randn(32, 8, 8, 8)))
    return counter.usage()


def test_usage_entropy_raises_usage_and_the_printed_sign_does_not():
    ours, without, printed = (usage_after_training(weight) for weight in (0.1, 0.0, -0.1))
    assert ours > 0.6 > 0.4 > without > printed, (ours, without, printed)


def test_processes_share_one_mean_usage():
    q = quantizer(entropy_weight=1.0)
    halves = torch.randn(4, 4, 3, 3).chunk(2)
    seen: list[Tensor] = []
    q.all_mean = lambda x: seen.append(x) or x
    q(halves[0])
    assert [s.shape for s in seen] == [(), (16,)]
    assert seen[1].requires_grad


def test_initialize_takes_latents_and_is_repeatable():
    q = quantizer(num_codes=20)
    latents = torch.randn(2, 4, 4, 4)
    torch.manual_seed(7)
    q.initialize(latents)
    first = q.codebook.detach().clone()
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    assert (torch.cdist(first.double(), rows.double()).amin(1) < 1e-6).all() and len(
        first.unique(dim=0)
    ) == 20
    torch.manual_seed(7)
    q.initialize(latents)
    assert torch.equal(first, q.codebook)
    few = quantizer(num_codes=50)
    few.initialize(latents[:1])
    assert len(few.codebook.unique(dim=0)) == 50


def test_usage_counter():
    counter = UsageCounter(4)
    assert counter.usage() == 0 and counter.perplexity() == 1
    counter.update(torch.tensor([[0, 1], [1, 0]]))
    assert counter.usage() == 0.5 and counter.perplexity() == pytest.approx(2)
    assert counter.state()["counts"].tolist() == [2, 2, 0, 0]
    counter.reset()
    assert counter.counts.sum() == 0


# A rule of one's own: round every channel to one of two values (lookup-free quantization).


@dataclass(frozen=True)
class BitsConfig(QuantizerConfig):
    def build(self) -> "Bits":
        return Bits(self)


class Bits(Quantizer):
    def forward(self, latents: Tensor) -> Quantized:
        codes = self.encode(latents)
        signs = self.lookup(codes)
        return Quantized(codes, straight_through(latents, signs), {})

    def encode(self, latents: Tensor) -> Tensor:
        powers = 2 ** torch.arange(self.code_dim).reshape(1, -1, 1, 1)
        return ((latents > 0) * powers).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        powers = 2 ** torch.arange(self.code_dim).reshape(1, -1, 1, 1)
        return (codes[:, None] // powers % 2) * 2.0 - 1


def test_a_rule_of_ones_own_fits():
    config = from_dict(QuantizerConfig, to_dict(BitsConfig(num_codes=16, code_dim=4)))
    rule = config.build()
    out = rule(torch.randn(2, 4, 3, 3))
    assert torch.equal(rule.encode(out.embeddings), out.codes)
    assert rule.total(out.losses) == 0
