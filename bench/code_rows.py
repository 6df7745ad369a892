"""The search for the nearest code (Eq. 1), alone and with the quantizer's losses (Sec. 3.4)."""

from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Precision, Row, Setting
from bench.plain import codes as plain
from semvq.tokenizer.nearest import nearest_code
from semvq.tokenizer.quantize import VectorQuantizerConfig

SIZES = (1024, 16_384, 262_144)
CHECKED_ROWS = 2048  # as many as a float64 search has memory for


def inputs(setting: Setting, num_codes: int) -> tuple[Tensor, Tensor]:
    """Rows (N, C), and a codebook (K, C) of the same spread; few rows where codes are many."""
    width = setting.pick(256, 64, 32, 8)
    entries = setting.pick(0, 2**26, 2**23, 2**14)  # of the whole matrix
    num_rows = setting.pick(65_536, *(max(64, min(16_384, entries // num_codes)),) * 3)
    return setting.random(num_rows, width), setting.random(num_codes, width, seed=1)


def sizes(setting: Setting, num_codes: int) -> int:
    """Codes at this scale: toy codebooks are 64 times smaller."""
    return setting.pick(num_codes, num_codes, num_codes, num_codes // 64)


def indices(setting: Setting, num_codes: int) -> Case:
    """Rows to codes."""
    rows, codebook = inputs(setting, sizes(setting, num_codes))

    def check() -> tuple[Tensor, Tensor]:
        some = rows[:CHECKED_ROWS]
        expected = [plain.nearest(part, codebook) for part in some.split(256)]
        return nearest_code(some, codebook), torch.cat(expected)

    flop, moved = search_cost(rows, codebook)
    return Case(
        lambda: nearest_code(rows, codebook),
        lambda: plain.nearest(rows, codebook, torch.float32),
        1,
        shape(rows, codebook),
        flop,
        moved,
        fp32_rate(setting),
        check=check,
        tolerance=0.0,
    )


def with_entropy(setting: Setting, num_codes: int) -> Case:
    """The whole quantizer in training: codes, losses with the usage entropy, and gradients."""
    rows, codebook = inputs(setting, sizes(setting, num_codes))
    config = VectorQuantizerConfig(num_codes=len(codebook), code_dim=rows.shape[1])
    quantizer = config.build().to(setting.device).train()
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
    side = 8
    shaped = rows.view(-1, side, side, rows.shape[1]).permute(0, 3, 1, 2).contiguous()
    shaped = shaped.to(setting.dtype)  # as an encoder would give them
    shaped.requires_grad_(True)
    copied = codebook.clone().requires_grad_(True)

    def ours() -> Tensor:
        found = quantizer(shaped)
        loss = quantizer.total(found.losses)
        return _gradients(loss, shaped, quantizer.codebook)

    def eager() -> Tensor:
        loss, _, _ = plain.quantizer_loss(shaped, copied, config)
        return _gradients(loss, shaped, copied)

    flop, moved = search_cost(rows, codebook)
    # the product for the codes, and for the entropy's softmax and both of its gradients
    return Case(
        ours, eager, 1, shape(rows, codebook), 4 * flop, 2 * moved, fp32_rate(setting), trains=True
    )


def _gradients(loss: Tensor, latents: Tensor, codebook: Tensor) -> Tensor:
    """Loss, and the gradients in three numbers each: what a wrong one would change."""
    found = torch.autograd.grad(loss, (latents, codebook))
    facts = [loss.detach()]
    for gradient in found:
        facts += [gradient.norm(), gradient.abs().max(), gradient.flatten()[::7].sum()]
    return torch.stack(facts)


def search_cost(rows: Tensor, codebook: Tensor) -> tuple[float, float]:
    """FLOPs of the product of rows and codes; bytes of both and of the answer."""
    (num, width), num_codes = rows.shape, len(codebook)
    return 2.0 * num * num_codes * width, 4.0 * (num + num_codes) * width + 8.0 * num


def fp32_rate(setting: Setting) -> Precision:
    """What the floor of the search is counted at: on a GPU the product may be one of TF32."""
    return "tf32" if setting.device == "cuda" else "fp32"


def shape(rows: Tensor, codebook: Tensor) -> dict[str, object]:
    """N, K and C."""
    return {"rows": len(rows), "num_codes": len(codebook), "width": rows.shape[1]}


ROWS = (
    *(
        Row(f"nearest-{k}", "ms", partial(indices, num_codes=k), f"nearest of {k:,} codes")
        for k in SIZES
    ),
    *(
        Row(
            f"nearest-entropy-{k}", "ms", partial(with_entropy, num_codes=k),
            f"quantizer of {k:,} codes with its losses, forward and backward",
        )
        for k in SIZES
    ),
)  # fmt: skip
