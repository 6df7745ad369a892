"""Cross-entropy from logits of any precision: equal to torch's, whatever the pieces."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.generators import cross_entropy
from semvq.generators.cross_entropy import CrossEntropy

B, N, V = 3, 7, 19
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])


def inputs(dtype: torch.dtype = torch.float32, scale: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, codes, and a weight for each position's loss."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(B, N, V, generator=generator)
    codes = torch.randint(V, (B, N), generator=generator)
    weights = torch.rand(B, N, generator=generator)
    return logits.to(dtype).requires_grad_(), codes, weights


def reference(logits: Tensor, codes: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), codes.flatten(), reduction="none", label_smoothing=smoothing
    ).view_as(codes)


@SMOOTHINGS
@pytest.mark.parametrize("limit", [1, 5 * V, 10**6])
def test_equals_torch_with_its_gradient_in_pieces_of_any_size(monkeypatch, smoothing, limit):
    monkeypatch.setattr(cross_entropy, "_PIECE_CPU", limit)
    logits, codes, weights = inputs()
    found = CrossEntropy(smoothing)(logits, codes)
    (gradient,) = torch.autograd.grad((weights * found.loss).sum(), logits)
    expected = reference(logits, codes, smoothing)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), logits)
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.nats, reference(logits, codes, 0.0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.hits, logits.argmax(-1) == codes)
    assert not found.nats.requires_grad and not found.hits.requires_grad


def test_large_logits_and_a_sure_model_stay_finite_and_exact():
    logits, codes, _ = inputs(scale=1e4)
    own = torch.full((B, N, 1), 2e4)
    sure = logits.detach().clamp(max=1e4).scatter(-1, codes.unsqueeze(-1), own)
    for x in (logits.detach(), sure):
        x = x.requires_grad_()
        found = CrossEntropy(0.1)(x, codes)
        torch.testing.assert_close(found.loss, reference(x, codes, 0.1), rtol=1e-6, atol=1e-3)
        (gradient,) = torch.autograd.grad(found.loss.sum(), x)
        (wanted,) = torch.autograd.grad(reference(x, codes, 0.1).sum(), x)
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)
    assert bool(found.hits.all()) and float(found.nats.max()) == 0.0


@SMOOTHINGS
def test_gradients_in_double_precision(smoothing):
    logits, codes, _ = inputs(torch.float64, 1.0)
    module = CrossEntropy(smoothing)
    assert torch.autograd.gradcheck(lambda x: module(x, codes).loss, logits)


@SMOOTHINGS
def test_bfloat16_logits_get_their_gradient_in_bfloat16(smoothing):
    logits, codes, weights = inputs(torch.bfloat16)
    found = CrossEntropy(smoothing)(logits, codes)
    assert found.loss.dtype == found.nats.dtype == torch.float32
    wide = logits.detach().float().requires_grad_()
    expected = reference(wide, codes, smoothing)
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)  # only logits rounded
    (gradient,) = torch.autograd.grad((weights * found.loss).sum(), logits)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), wide)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.float(), wanted, rtol=2**-8, atol=1e-6)


def test_of_equal_logits_the_first_counts_as_the_likeliest():
    logits, codes = torch.zeros(1, 2, V), torch.tensor([[0, 1]])
    assert CrossEntropy()(logits, codes).hits.tolist() == [[True, False]]


@SMOOTHINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_one_graph_and_the_same(smoothing, dtype):
    logits, codes, weights = inputs(dtype)
    eager, compiled = CrossEntropy(smoothing), CrossEntropy(smoothing)
    compiled.compile(backend="aot_eager", fullgraph=True)
    found = []
    for module in (eager, compiled):
        scores = module(logits, codes)
        found.append((*scores, *torch.autograd.grad((weights * scores.loss).sum(), logits)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
