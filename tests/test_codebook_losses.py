"""The usage entropy's soft assignment: its own backward pass against autograd in float64."""

import pytest
import torch
from torch import Tensor

from semvq.losses import codebook as module
from semvq.losses.codebook import distance_scale, distances, soft_usage, usage_entropy
from semvq.tokenizer.quantize import VectorQuantizerConfig


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(rows: Tensor, codes: Tensor, distance: str, temperature: float | Tensor) -> Tensor:
    return (-distances(rows, codes, distance) / temperature).softmax(1).mean(0)


def results(usage, rows: Tensor, codes: Tensor, distance: str, temperature) -> list[Tensor]:
    """Usage, and the gradients of its entropy."""
    rows, codes = (t.detach().clone().requires_grad_() for t in (rows, codes))
    found = usage(rows, codes, distance, temperature)
    return [found, *torch.autograd.grad(usage_entropy(found), (rows, codes))]


def check(device: str, distance: str, offset: float = 0.0) -> None:
    rows, codes = normal(90, 20) + offset, 1.2 * normal(33, 20, seed=1) + offset
    temperature = 0.05 * distance_scale(rows, codes, distance)
    exact = results(plain, rows.double(), codes.double(), distance, temperature.double())
    moved = (t.to(device) for t in (rows, codes))
    found = results(soft_usage, *moved, distance, temperature.to(device))
    for one, two in zip(found, exact):
        assert one.dtype == torch.float32
        tolerance = 1e-5 * float(two.detach().abs().max())
        torch.testing.assert_close(one.cpu().double(), two, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("chunk", [2**25, 33 * 7])
@pytest.mark.parametrize("distance", ["l2", "l2_squared"])
def test_usage_and_gradients_are_those_of_the_formula_in_float64(distance, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    check("cpu", distance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("chunk", [2**27, 33 * 7])
@pytest.mark.parametrize("distance", ["l2", "l2_squared"])
def test_the_same_on_a_gpu(distance, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CUDA_CHUNK", chunk)
    check("cuda", distance)


@pytest.mark.parametrize("distance", ["l2", "l2_squared"])
def test_gradients_are_slopes(distance):
    rows, codes = (t.double().requires_grad_() for t in (normal(7, 3), normal(5, 3, seed=1)))
    torch.autograd.gradcheck(lambda r, c: soft_usage(r, c, distance, 0.7), (rows, codes))


def test_autocast_changes_nothing():
    rows, codes = normal(40, 8), normal(9, 8, seed=1)
    expected = results(soft_usage, rows, codes, "l2_squared", 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(soft_usage, rows, codes, "l2_squared", 0.1)
    assert all(map(torch.equal, found, expected))


def test_either_side_may_be_without_a_gradient():
    rows, codes = normal(40, 8), normal(9, 8, seed=1)
    whole = results(soft_usage, rows, codes, "l2", 0.1)
    for i in range(2):
        given = [rows.clone(), codes.clone()]
        given[i].requires_grad_()
        entropy = usage_entropy(soft_usage(*given, "l2", 0.1))
        assert torch.equal(torch.autograd.grad(entropy, given[i])[0], whole[1 + i])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("distance", ["l2", "l2_squared"])
def test_memory_is_bounded_on_a_gpu(distance):
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of GPU memory")
    rows = normal(8192, 256).cuda().requires_grad_()
    codes = normal(262_144, 256, seed=1).cuda().requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    usage_entropy(soft_usage(rows, codes, distance, 10.0)).backward()
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30


def quantizer_gradients(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Of the usage entropy, with respect to latents and codes."""
    quantizer = VectorQuantizerConfig(num_codes=300, code_dim=64).build().to(latents.device)
    with torch.no_grad():
        quantizer.codebook.copy_(normal(300, 64, seed=1))
    latents = latents.clone().requires_grad_()
    loss = quantizer.train()(latents).losses["entropy"]
    one, two = torch.autograd.grad(loss, (latents, quantizer.codebook))
    return one.float(), two


@pytest.mark.parametrize("half, expected", [(False, "highest"), (True, "high")])
def test_products_of_both_passes_go_by_the_latents(half, expected, monkeypatch):
    seen = []
    shares = module._Softmax.shares

    def watched(self, rows):
        seen.append(torch.get_float32_matmul_precision())
        return shares(self, rows)

    monkeypatch.setattr(module._Softmax, "shares", watched)
    quantizer_gradients(normal(2, 64, 4, 4).to(torch.bfloat16 if half else torch.float32))
    assert seen == [expected, expected]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_is_closer_than_the_latents_are():
    latents = normal(4, 64, 16, 16).cuda()
    rounded = latents.bfloat16()
    exact = quantizer_gradients(rounded.float())
    found, other = quantizer_gradients(rounded), quantizer_gradients(latents)
    assert not torch.equal(found[1], exact[1]), "products were not rounded to TF32"
    for one, same, two in zip(found, exact, other):
        error, rounding = ((x - same).norm() / same.norm() for x in (one, two))
        assert error < rounding / 2, (error, rounding)
