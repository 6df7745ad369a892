"""AR and NAR transformers: causality, losses, dropped classes, gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.generators.nar import NARConfig, evaluation_masks

K, HEIGHT, WIDTH = 11, 4, 3
KINDS = pytest.mark.parametrize("kind", [ARConfig, NARConfig])


def tiny(kind: type, num_classes: int = 3, **changes: float) -> Generator:
    torch.manual_seed(0)
    return kind(
        num_layers=2, width=16, num_heads=2, num_codes=K, grid_height=HEIGHT, grid_width=WIDTH,
        num_classes=num_classes, **changes,
    ).build()  # fmt: skip


def batch(num: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, K, (num, HEIGHT, WIDTH), generator=generator)
    return codes, torch.arange(num) % 3


# Autoregressive


def test_cached_steps_equal_the_full_pass():
    generator = tiny(ARConfig, conditioning_dropout=0.1).eval().requires_grad_(False)
    codes, classes = batch()
    classes = torch.tensor([0, 1, 2, -1, -1, 0])
    full = generator(codes.flatten(1), classes)
    cache, previous = generator.new_cache(6), None
    for i in range(HEIGHT * WIDTH):
        logits = generator.step(previous, cache, classes)
        assert float((logits - full[:, i]).abs().max()) < 1e-5
        previous = codes.flatten(1)[:, i]
    with pytest.raises(IndexError):
        generator.step(previous, cache)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_code_changes_nothing_before_or_at_itself(num_classes):
    generator = tiny(ARConfig, num_classes).eval()
    codes, classes = batch()
    codes, classes = codes.flatten(1), classes if num_classes else None
    logits = generator(codes, classes)
    for j in range(HEIGHT * WIDTH):
        changed = codes.clone()
        changed[:, j] = (changed[:, j] + 1) % K
        other = generator(changed, classes)
        assert torch.equal(other[:, : j + 1], logits[:, : j + 1])  # bitwise
        if j + 1 < HEIGHT * WIDTH:
            assert not torch.equal(other[:, j + 1], logits[:, j + 1])


def test_ar_takes_a_shorter_context():
    generator = tiny(ARConfig).eval()
    codes, classes = batch()
    part = generator(codes.flatten(1)[:, :5], classes)
    assert torch.allclose(part, generator(codes.flatten(1), classes)[:, :5], atol=1e-6)


def test_ar_loss_is_the_mean_cross_entropy():
    generator = tiny(ARConfig, dropout=0.0)
    codes, classes = batch()
    loss, logs = generator.training_loss(codes, classes)
    log_p = generator(codes.flatten(1), classes).double().log_softmax(-1)
    expected = -log_p.gather(-1, codes.flatten(1).unsqueeze(-1)).mean().detach()
    assert loss.item() == pytest.approx(float(expected), abs=1e-5)
    assert float(generator.evaluation_loss(codes, classes)) == pytest.approx(
        float(expected), abs=1e-5
    )
    assert loss.requires_grad and not any(v.requires_grad for v in logs.values())
    assert loss.item() == pytest.approx(math.log(K), abs=0.2)  # knows nothing yet


# Non-autoregressive


def test_nar_sees_both_sides_and_the_class():
    generator = tiny(NARConfig, conditioning_dropout=0.1).eval()
    codes, classes = batch()
    flat = codes.flatten(1).clone()
    flat[:, 5] = generator.mask_code
    logits = generator(flat, classes)
    assert logits.shape == (6, HEIGHT * WIDTH, K)
    for j in (0, 11):
        changed = flat.clone()
        changed[:, j] = (changed[:, j] + 1) % K
        assert not torch.allclose(generator(changed, classes)[:, 5], logits[:, 5])
    assert not torch.allclose(generator(flat, (classes + 1) % 3)[:, 5], logits[:, 5])
    assert not torch.allclose(generator(flat)[:, 5], logits[:, 5])


def test_the_logits_at_a_position_are_of_that_position():
    generator = tiny(NARConfig).eval()
    for block in generator.blocks:
        torch.nn.init.zeros_(block.attention.proj.weight)  # nothing passes between positions
    codes, classes = batch()
    flat = codes.flatten(1)
    changed = flat.clone()
    changed[:, 4] = (changed[:, 4] + 1) % K
    moved = (generator(changed, classes) != generator(flat, classes)).any(-1)
    assert moved.nonzero()[:, 1].unique().tolist() == [4]


def test_each_class_has_a_row_of_its_own():
    generator = tiny(NARConfig).eval()
    codes, classes = batch()
    before = generator(codes.flatten(1), classes)
    generator.table.weight.data[K] += 1.0  # mask: not shown
    assert torch.equal(generator(codes.flatten(1), classes), before)
    generator.table.weight.data[K + 1 + 2, ::2] += 1.0
    moved = (generator(codes.flatten(1), classes) != before).flatten(1).any(1)
    assert torch.equal(moved, classes == 2)


def test_a_dropped_class_is_the_mask_token_at_the_prefix():
    generator = tiny(NARConfig, conditioning_dropout=0.5).eval()
    codes, _ = batch()
    before = generator(codes.flatten(1))
    generator.table.weight.data[generator.mask_code + 1 :] = 7.0  # classes: not looked at
    assert torch.equal(generator(codes.flatten(1)), before)
    generator.table.weight.data[generator.mask_code] = 7.0
    assert not torch.equal(generator(codes.flatten(1)), before)


def test_code_logits_are_the_first_of_the_vocabulary():
    generator = tiny(NARConfig).eval()
    codes, classes = batch()
    every = generator.vocabulary_logits(codes.flatten(1), classes)
    assert every.shape[-1] == K + 1 + 3
    assert torch.allclose(every[..., :K], generator(codes.flatten(1), classes), atol=1e-6)


def test_nar_training_loss_counts_masked_positions_with_smoothing():
    generator = tiny(NARConfig, dropout=0.0, label_smoothing=0.2)
    codes, classes = batch()
    torch.manual_seed(3)
    loss, logs = generator.training_loss(codes, classes)
    torch.manual_seed(3)
    flat = codes.flatten(1)
    masked = generator._training_mask(flat)
    logits = generator.vocabulary_logits(flat.masked_fill(masked, K), classes)
    log_p = logits.detach().log_softmax(-1)[masked]
    plain = -log_p.gather(-1, flat[masked].unsqueeze(-1)).mean()
    assert loss.item() == pytest.approx(float(0.8 * plain - 0.2 * log_p.mean()), abs=1e-5)
    assert float(logs["cross_entropy"]) == pytest.approx(float(plain), abs=1e-5)
    assert float(logs["mask_share"]) == pytest.approx(float(masked.float().mean()))


@pytest.mark.parametrize("min_mask_share", [0.0, 0.5])
def test_training_masks_follow_the_cosine(min_mask_share):
    generator = tiny(NARConfig, min_mask_share=min_mask_share)
    torch.manual_seed(0)
    num = generator._training_mask(torch.zeros(20_000, 12, dtype=torch.int64)).sum(1)
    u = (torch.arange(100_000) + 0.5) / 100_000
    expected = (torch.cos(math.pi / 2 * u).clamp(min=min_mask_share) * 12).ceil()
    assert float(num.float().mean()) == pytest.approx(float(expected.mean()), abs=0.08)
    assert int(num.max()) == 12  # the first sampling step must have been seen in training
    assert int(num.min()) == max(1, math.ceil(min_mask_share * 12))


def test_evaluation_masks_are_fixed_and_spread():
    masks = evaluation_masks(64, torch.device("cpu"))
    assert masks.sum(1).tolist() == [63, 54, 36, 13]
    assert torch.equal(masks, evaluation_masks(64, torch.device("cpu")))


def test_nar_evaluation_loss_is_the_mean_over_the_fixed_masks():
    generator = tiny(NARConfig).eval()
    codes, classes = batch()
    flat, total, count = codes.flatten(1), 0.0, 0
    with torch.no_grad():
        for mask in evaluation_masks(12, torch.device("cpu")):
            logits = generator(flat.masked_fill(mask, K), classes)
            nats = F.cross_entropy(logits.transpose(1, 2), flat, reduction="none")
            total += float(nats[:, mask].sum())
            count += int(mask.sum()) * len(codes)
    assert float(generator.evaluation_loss(codes, classes)) == pytest.approx(
        total / count, abs=1e-5
    )


# Both


@KINDS
def test_evaluation_draws_nothing_and_adds_up_over_batches(kind):
    generator = tiny(kind).train()
    codes, classes = batch(8)
    state = torch.get_rng_state()
    whole = generator.evaluation_loss(codes, classes)
    assert torch.equal(torch.get_rng_state(), state) and generator.training
    assert not whole.requires_grad
    parts = [(generator.evaluation_loss(codes[s], classes[s]), len(codes[s]))
             for s in (slice(0, 3), slice(3, 8))]  # fmt: skip
    assert float(whole) == pytest.approx(sum(float(v) * n for v, n in parts) / 8, abs=1e-6)


@KINDS
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_parameter_gets_a_gradient(kind, num_classes):
    generator = tiny(kind, num_classes)
    codes, classes = batch(12)
    loss, _ = generator.training_loss(codes, classes if num_classes else None)
    loss.backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


@KINDS
def test_dropped_classes(kind):
    generator = tiny(kind, conditioning_dropout=0.25)
    torch.manual_seed(0)
    dropped = generator.drop_classes(torch.full((4000,), 2))
    assert float((dropped == -1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert bool(((dropped == -1) | (dropped == 2)).all())
    kept = torch.arange(5)
    assert torch.equal(tiny(kind).drop_classes(kept), kept)
    generator.eval()
    codes = batch()[0].flatten(1)
    assert torch.equal(generator(codes), generator(codes, torch.full((6,), -1)))


@KINDS
def test_a_few_steps_learn_the_class(kind):
    # Every image of class y is filled with code y; MaskGIT's smoothing would keep the loss up.
    extra = {"label_smoothing": 0.0} if kind is NARConfig else {}
    generator = tiny(kind, dropout=0.0, **extra)
    # At 1e-2 half of all seeds leave NAR's post-norm blocks, which have no warm-up here, untaught.
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    classes = torch.arange(12) % 3
    codes = classes.view(-1, 1, 1).expand(-1, HEIGHT, WIDTH).contiguous()
    for _ in range(300):
        optimizer.zero_grad()
        generator.training_loss(codes, classes)[0].backward()
        optimizer.step()
    assert float(generator.evaluation_loss(codes, classes)) < 0.1
    drawn = generator.sample(12, classes)
    assert float((drawn == codes).float().mean()) > 0.9


@KINDS
def test_initial_weights(kind):
    generator = tiny(kind)
    weights = torch.cat(
        [p.detach().flatten() for n, p in generator.named_parameters() if "qkv.weight" in n]
    )
    assert float(weights.std()) == pytest.approx(0.02, rel=0.2)
    assert (float(weights.abs().max()) <= 0.04) == (kind is NARConfig)
    for name, parameter in generator.named_parameters():
        if name.endswith("bias"):
            assert float(parameter.detach().abs().sum()) == 0, name


@KINDS
def test_bfloat16_autocast_gives_a_float32_loss(kind):
    generator = tiny(kind)
    codes, classes = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = generator.training_loss(codes, classes)
        codes = generator.sample(2, classes[:2])
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss))
    assert int(codes.max()) < K
