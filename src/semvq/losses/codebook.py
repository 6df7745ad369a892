"""Losses that shape the codebook: Eq. 2's two quantization terms and Sec. 3.4's usage entropy."""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from semvq.precision import fp32_products

Distance = Literal["l2", "l2_squared"]

_CHUNK = 2**25  # elements of the (rows, codes) distance matrix held at once
_CUDA_CHUNK = 2**27  # on a GPU, which small products leave idle; two of these are 1 GiB
_NEAREST = 1e-6  # an L2 distance far below any that matters: the root has no gradient at zero


def codebook_loss(latents: Tensor, embeddings: Tensor) -> Tensor:
    """Move codes to their latents: mean of |sg[E(x)] - z_q|^2 over all elements (Eq. 2)."""
    return F.mse_loss(embeddings, latents.detach())


def commitment_loss(latents: Tensor, embeddings: Tensor) -> Tensor:
    """Move latents to their codes: mean of |sg[z_q] - E(x)|^2 over all elements (Eq. 2)."""
    return F.mse_loss(latents, embeddings.detach())


def distances(rows: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Distance of each of `rows` (N, C) to each code of `codebook` (K, C): fp32 (N, K)."""
    products = rows @ codebook.t()
    squared = rows.square().sum(1, keepdim=True) - 2 * products + codebook.square().sum(1)
    squared = squared.clamp_min(0)
    if distance == "l2_squared":
        return squared
    return squared.clamp_min(_NEAREST**2).sqrt()


@torch.no_grad()
def distance_scale(rows: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Typical gap between a row's mean and least distance, a scalar; 0 never comes back.

    It is the unit in which the softmax of `soft_usage` tells codes apart, whatever the width or
    the size of the latents (D2).
    """
    num_rows = max(1, min(4096, _CHUNK // len(codebook)))
    sample = rows[:: max(1, len(rows) // num_rows)]
    found = distances(sample, codebook, distance)
    return (found.mean(1) - found.amin(1)).mean().clamp_min(1e-6)


def soft_usage(
    rows: Tensor, codebook: Tensor, distance: Distance, temperature: float | Tensor
) -> Tensor:
    """Mean over rows of softmax(-distance / temperature): the paper's D-bar (K,), which sums to 1.

    The mean is over every position of every image (D3). `rows` is (N, C), `codebook` (K, C). The
    (N, K) matrix is made in chunks, which the backward pass makes again. The temperature is a
    constant: it gets no gradient.
    """
    if isinstance(temperature, Tensor):
        temperature = temperature.detach()
    usage: Tensor = _SoftUsage.apply(rows, codebook, distance, temperature)
    return usage


class _Softmax(NamedTuple):
    """Soft assignment of rows (n, C) to codes (K, C); `norms` (K,) of codes are squared."""

    codebook: Tensor
    norms: Tensor
    distance: Distance
    temperature: float | Tensor

    def size(self) -> int:
        """Rows of a chunk, at least one."""
        held = _CUDA_CHUNK if self.codebook.is_cuda else _CHUNK
        held = held // 2 if self.distance == "l2" else held  # which keeps the distances as well
        return max(1, held // len(self.codebook))

    def shares(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Softmax (n, K), and distances (n, K) where the gradient has to divide by them."""
        codes = self.codebook.t()
        if self.distance == "l2_squared":
            # |z|^2 is the same for all codes, which a softmax does not see.
            scaled = rows * (2 / self.temperature)
            return torch.addmm(self.norms / -self.temperature, scaled, codes).softmax(1), None
        root = torch.addmm(self.norms, rows, codes, alpha=-2)
        root.add_(rows.square().sum(1, keepdim=True)).clamp_min_(_NEAREST**2).sqrt_()
        return (root / -self.temperature).softmax(1), root

    def slopes(self, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradient of `rows . codes` times the temperature (n, K), from that of the sum (K,).

        For squared distances it is half of that. Its sums (n, 1) over codes, None where they are 0.
        """
        shares, root = self.shares(rows)
        # The softmax's own gradient, p (g - p.g); one pass over the chunk in each step.
        found = (grad - (shares @ grad)[:, None]).mul_(shares)
        if root is None:
            return found, None
        found.div_(root).masked_fill_(root <= 1.001 * _NEAREST, 0)
        return found, found.sum(1, keepdim=True)


class _SoftUsage(torch.autograd.Function):
    """See `soft_usage`; autocast is off inside, as the temperature makes rounding errors larger.

    For N = 65,536, K = 262,144, C = 256: four products of 8.8 TFLOP, in TF32 or fp32 as the
    quantizer sets it (with the search for the nearest code 494 or 1,065 ms on one H200), and
    (counted) 20 passes over the 69 GB that the matrix would be. Two chunks of it are alive at once,
    1 GiB, beside the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, codebook: Tensor, distance: Distance, temperature: float | Tensor
    ) -> Tensor:
        ctx.products = torch.get_float32_matmul_precision()  # may be another going backward
        with torch.autocast(rows.device.type, enabled=False):
            softmax = _Softmax(codebook, codebook.square().sum(1), distance, temperature)
            usage = torch.zeros_like(softmax.norms)
            for part in rows.split(softmax.size()):
                usage += softmax.shares(part)[0].sum(0)
        ctx.save_for_backward(rows, codebook, softmax.norms)
        ctx.distance, ctx.temperature = distance, temperature
        return usage / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, codebook, norms = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False), fp32_products(ctx.products):
            softmax = _Softmax(codebook, norms, ctx.distance, ctx.temperature)
            size, grad = softmax.size(), grad / len(rows)
            of_rows, of_codes = torch.empty_like(rows), torch.zeros_like(codebook)
            sums = torch.zeros_like(norms)
            for part, into in zip(rows.split(size), of_rows.split(size)):
                slopes, total = softmax.slopes(part, grad)
                into.copy_(slopes @ codebook)
                if total is not None:
                    into.addcmul_(part, total, value=-1)
                of_codes.addmm_(slopes.t(), part)
                sums += slopes.sum(0)
                del slopes  # not to be alive beside the next chunk's
            of_codes.addcmul_(codebook, sums[:, None], value=-1)
            scale = (1 if ctx.distance == "l2" else 2) / ctx.temperature
            return of_rows.mul_(scale), of_codes.mul_(scale), None, None


def usage_entropy(usage: Tensor) -> Tensor:
    """Entropy of D-bar (K,) in nats: H = -sum_k D_k log D_k (Sec. 3.4), at most log K."""
    # D_k can underflow to 0, where the logarithm has no gradient and the product none to give.
    return -(usage * usage.clamp_min(1e-20).log()).sum()
