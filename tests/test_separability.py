"""Figures of codes alone: sources whose entropies are known, exact counts, honest mixtures."""

import math
import time

import pytest
import torch
from torch import Tensor

from semvq.metrics import unigram_cross_entropy
from semvq.probe.separability import (
    ContextCounts,
    em_weights,
    position_nats,
    separability,
    small_transformer,
)

K = 8


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def independent(num: int, seed: int) -> Tensor:
    """Codes drawn alone, code k with a share that falls with k."""
    share = torch.arange(K, 0, -1).double()
    flat = torch.multinomial(share, num * 64, replacement=True, generator=seeded(seed))
    return flat.view(num, 8, 8)


def entropy(share: Tensor) -> float:
    return float(-(share * share.log()).sum())


def chain(num: int, seed: int, stay: float = 0.8) -> Tensor:
    """Rows are Markov chains of their own: the code to the left again, else any of K at random."""
    generator = seeded(seed)
    codes = torch.randint(0, K, (num, 12, 12), generator=generator)
    stays = torch.rand(num, 12, 12, generator=generator) < stay
    for column in range(1, 12):
        before = codes[:, :, column - 1]
        codes[:, :, column] = torch.where(stays[:, :, column], before, codes[:, :, column])
    return codes


def chain_entropy(stay: float = 0.8) -> float:
    """Nats per code: the first of each row is uniform, the others follow one before."""
    again = stay + (1 - stay) / K
    other = (1 - stay) / K
    later = -again * math.log(again) - (K - 1) * other * math.log(other)
    return (math.log(K) + 11 * later) / 12


def test_independent_codes_cost_their_entropy_whatever_the_model():
    truth = independent(400, 1)
    share = torch.arange(K, 0, -1).double()
    classes = torch.arange(600) % 3
    found = separability(independent(600, 0), truth, K, classes, classes[:400])
    for name in ("unigram", "class_unigram", "left", "above", "ngram"):
        assert found[name] == pytest.approx(entropy(share / share.sum()), abs=0.015), name
    assert all(abs(found[f"gain_{n}"]) < 0.002 for n in ("class_unigram", "left", "above", "ngram"))


def test_neighbours_that_only_seem_to_help_are_not_trusted():
    """Every pair is rare: weights found on the images that were counted would be all on pairs."""
    codes = torch.randint(0, 300, (90, 8, 8), generator=seeded(0))
    found = separability(codes[:60], codes[60:], 300)
    for name in ("left", "above", "ngram"):
        assert abs(found[f"gain_{name}"]) < 0.05, name


def test_a_chain_along_rows_is_left_for_the_left_model():
    found = separability(chain(1000, 0), chain(300, 1), K)
    assert found["left"] == pytest.approx(chain_entropy(), abs=0.02)
    assert found["ngram"] == pytest.approx(chain_entropy(), abs=0.02)
    assert found["above"] == pytest.approx(math.log(K), abs=0.01)
    assert found["gain_left"] == pytest.approx(math.log(K) - chain_entropy(), abs=0.02)
    turned = separability(
        chain(1000, 0).transpose(1, 2).contiguous(), chain(300, 1).transpose(1, 2), K
    )
    assert turned["above"] == pytest.approx(chain_entropy(), abs=0.02)
    assert turned["left"] == pytest.approx(math.log(K), abs=0.01)


def test_a_checkerboard_needs_one_neighbour_and_its_first_code_alone_is_new():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    phase = torch.randint(0, 2, (600, 1, 1), generator=seeded(0))
    codes = (board + phase) % 2
    found = separability(codes[:400], codes[400:], 2)
    assert found["unigram"] == pytest.approx(math.log(2), abs=1e-3)
    # the left model knows nothing in the first column, both together only nothing in the corner
    assert found["left"] == pytest.approx(math.log(2) / 8, abs=0.01)
    assert found["above"] == pytest.approx(math.log(2) / 8, abs=0.01)
    assert found["ngram"] == pytest.approx(math.log(2) / 64, abs=0.01)


def test_only_left_and_above_together_tell_the_sum():
    """code = left + above mod K inside: each neighbour alone is worth nothing."""
    generator = seeded(3)

    def draw(num: int) -> Tensor:
        codes = torch.randint(0, K, (num, 10, 10), generator=generator)
        for i in range(1, 10):
            for j in range(1, 10):
                codes[:, i, j] = (codes[:, i - 1, j] + codes[:, i, j - 1]) % K
        return codes

    found = separability(draw(400), draw(100), K)
    assert found["left"] > 0.98 * math.log(K) and found["above"] > 0.98 * math.log(K)
    assert found["ngram"] == pytest.approx(math.log(K) * 19 / 100, abs=0.02)


def test_classes_with_codes_of_their_own():
    classes = torch.arange(200) % 4
    low = torch.randint(0, 2, (200, 6, 6), generator=seeded(0))
    codes = low + 2 * classes[:, None, None]
    found = separability(codes[:120], codes[120:], K, classes[:120], classes[120:])
    assert found["unigram"] == pytest.approx(math.log(8), abs=0.01)
    assert found["class_unigram"] == pytest.approx(math.log(2), abs=0.01)
    assert "class_unigram" not in separability(codes[:120], codes[120:], K)


def test_the_unigram_is_that_of_the_metrics():
    a, b = chain(20, 0), chain(10, 1)
    assert separability(a, b, 11)["unigram"] == pytest.approx(unigram_cross_entropy(a, b, 11))


def dense(left: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (K + 1, K) of code after left neighbour, and the add-one unigram, one by one."""
    table = torch.zeros(K + 1, K, dtype=torch.float64)
    for before, code in zip(left.flatten().tolist(), codes.flatten().tolist()):
        table[before, code] += 1
    return table, (table.sum(0) + 1) / (table.sum() + K)


def dense_parts(table: Tensor, unigram: Tensor, before: int, code: int) -> tuple[int, list[float]]:
    total = int(table[before].sum())
    own = table[before, code] / total if total else unigram[code]
    return total.bit_length(), [float(unigram[code]), float(own)]


def test_sparse_counts_equal_naive_dense_ones():
    train, val = chain(33, 0)[:, :5, :7].clone(), chain(6, 1)[:, :5, :7]
    train[train == 3] = 2  # a code, and a context, that only the held-out images have
    left, val_left = (
        torch.cat([torch.full_like(x[:, :, :1], K), x], 2)[:, :, :-1] for x in (train, val)
    )
    held = torch.tensor([0, 8, 16, 24, 32])
    kept = torch.tensor([i for i in range(33) if i % 8])
    draft = dense(left[kept], train[kept])
    rows: dict[int, list[list[float]]] = {}
    for before, code in zip(left[held].flatten().tolist(), train[held].flatten().tolist()):
        bucket, parts = dense_parts(*draft, before, code)
        rows.setdefault(bucket, []).append(parts)
    weights = {b: em_weights(torch.tensor(x, dtype=torch.float64))[0] for b, x in rows.items()}
    table, unigram = dense(left, train)
    nats = []
    for before, code in zip(val_left.flatten().tolist(), val.flatten().tolist()):
        bucket, parts = dense_parts(table, unigram, before, code)
        below = [b for b in weights if b <= bucket]
        weight = weights[max(below) if below else min(weights)]
        nats.append(-math.log(float(weight @ torch.tensor(parts, dtype=torch.float64))))
    found = position_nats(train, val, K)["left"]
    assert torch.allclose(found, torch.tensor(nats, dtype=torch.float64).view_as(val), rtol=1e-9)


def test_counts_by_hand():
    counts = ContextCounts(torch.tensor([0, 0, 0, 5]), torch.tensor([1, 1, 2, 3]), num_codes=4)
    assert counts.total(torch.tensor([[0, 5], [1, 9]])).tolist() == [[3, 1], [0, 0]]
    where = torch.tensor([0, 0, 5, 5, 7])
    assert counts.count(where, torch.tensor([1, 3, 3, 0, 3])).tolist() == [2, 0, 1, 0, 0]


@pytest.mark.parametrize("before", ["seen", "rare", "unseen"])
def test_every_model_is_a_distribution_in_every_context(before):
    train = chain(20, 0)[:, :4, :4].clamp(max=K - 2)  # the last code never occurs
    image = train[3].clone()
    image[3, 2] = {"seen": train[5, 3, 2], "rare": K - 2, "unseen": K - 1}[before]
    val = image.repeat(K, 1, 1)
    val[:, 3, 3] = torch.arange(K)  # the last code is nobody's context
    classes = torch.arange(20) % 2
    given = torch.full((K,), 7 if before == "unseen" else 1)
    found = position_nats(train, val, K, classes, given)
    for name, nats in found.items():
        assert nats.isfinite().all()
        assert float((-nats[:, 3, 3]).exp().sum()) == pytest.approx(1.0, rel=1e-12), name


def test_the_ngram_is_no_worse_than_a_neighbour_where_pairs_are_too_many_to_count():
    """A code follows its left neighbour up to noise; a thousand codes make a million pairs."""
    generator = seeded(0)

    def draw(num: int) -> Tensor:
        steps = torch.randint(-6, 7, (num, 12, 12), generator=generator)
        return (torch.randint(0, 1000, (num, 12, 1), generator=generator) + steps.cumsum(2)) % 1000

    found = separability(draw(400), draw(100), 1000)
    assert found["gain_left"] > 1
    assert found["ngram"] <= found["left"] + 0.01


def test_em_never_falls_and_finds_the_best_weights():
    generator = seeded(5)
    shares = torch.rand(500, 3, generator=generator, dtype=torch.float64) ** 3
    weights, objective = em_weights(shares, steps=200)
    assert len(objective) > 5
    assert all(b >= a - 1e-9 for a, b in zip(objective, objective[1:]))
    assert float(weights.sum()) == pytest.approx(1.0)

    def value(w: Tensor) -> float:
        return float((shares @ w).log().sum() + w.log().sum())

    grid = [
        torch.tensor([i, j, 50 - i - j], dtype=torch.float64) / 50
        for i in range(1, 49)
        for j in range(1, 50 - i)
    ]
    assert value(weights) >= max(map(value, grid)) - 1e-3


def test_no_weight_dies_for_want_of_data():
    shares = torch.tensor([[1e-4, 1.0]], dtype=torch.float64).expand(20, 2)
    weights, _ = em_weights(shares)
    assert float(weights[0]) == pytest.approx(1 / 22, rel=1e-2)


def test_a_context_that_fills_no_bucket_in_the_held_out_images_still_has_weights():
    """Counts on all images are above those the weights were found at: an empty bucket's."""
    codes = torch.arange(4).expand(32, 1, 4).contiguous()  # 28 fitted, 32 in all: other buckets
    found = separability(codes, codes[:3], 4)
    assert found["left"] < 0.15 and found["unigram"] == pytest.approx(math.log(4))


def test_many_codes_stay_sparse():
    num_codes = 16_384
    generator = seeded(0)
    train = torch.randint(0, num_codes, (60, 16, 16), generator=generator)
    train[:, :, 1::2] = (train[:, :, ::2] * 7 + 1) % num_codes  # every second follows its left
    counts = ContextCounts(train[:, :, 0], train[:, :, 1], num_codes)
    held = sum(x.numel() for x in vars(counts).values() if isinstance(x, Tensor))
    assert held <= 4 * 60 * 16
    found = separability(train, train, num_codes)
    assert found["left"] < 0.8 * found["unigram"]
    odd = position_nats(train[:50], train[50:], num_codes)
    assert all(x.isfinite().all() and x.dtype == torch.float64 for x in odd.values())
    assert odd["ngram"].shape == (10, 16, 16)


def test_figures_are_deterministic_and_an_images_own():
    train, val = chain(40, 0), chain(9, 1)
    assert separability(train, val, K) == separability(train, val, K)
    whole, part = position_nats(train, val, K), position_nats(train, val[4:6], K)
    assert all(torch.equal(whole[name][4:6], part[name]) for name in whole)
    means = separability(train, val, K)
    assert means["ngram"] == pytest.approx(float(whole["ngram"].mean()))


def test_two_thousand_images_take_seconds():
    codes = torch.randint(0, 1024, (2200, 16, 16), generator=seeded(0))
    start = time.process_time()
    separability(codes[:2000], codes[2000:], 1024)
    assert time.process_time() - start < 10  # 1 s measured, whatever else the cores do


def test_what_it_refuses():
    codes = chain(4, 0)
    with pytest.raises(ValueError, match=r"train_codes: expected int64 codes \(N, h, w\)"):
        separability(codes.float(), codes, K)
    with pytest.raises(ValueError, match=r"val_codes: expected int64 codes \(N, h, w\)"):
        separability(codes, codes[0], K)
    with pytest.raises(ValueError, match="expected codes below 7, found 0 to 7"):
        separability(codes, codes, 7)
    with pytest.raises(ValueError, match="expected at least 2 images, found 1"):
        separability(codes[:1], codes, K)
    with pytest.raises(ValueError, match="expected 4 classes, found a tensor"):
        separability(codes, codes, K, torch.zeros(3).long(), torch.zeros(4).long())
    with pytest.raises(ValueError, match="training and held-out images or of neither"):
        separability(codes, codes, K, torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"expected \(M, 12, 12\) as in training"):
        small_transformer(codes, codes[:, :11], K)
    with pytest.raises(ValueError, match="num_images: expected at least 1"):
        small_transformer(codes, codes, K, num_images=0)


def test_a_small_transformer_learns_a_chain():
    train, val = chain(400, 0)[:, :2], chain(60, 1)[:, :2]
    found = small_transformer(train, val, K, num_images=800)
    assert found == pytest.approx(chain_entropy(), abs=0.15)  # the unigram's figure is 2.08


def test_a_small_transformer_is_its_seeds_and_leaves_the_generator_alone():
    train, val = chain(40, 0)[:, :3, :3], chain(6, 1)[:, :3, :3]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = small_transformer(train, val, K, num_images=96, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    with torch.no_grad():
        assert small_transformer(train, val, K, num_images=96, seed=3) == first
    assert small_transformer(train, val, K, num_images=96, seed=4) != first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_small_transformer_trains_where_the_codes_are():
    train, val = chain(400, 0)[:, :2], chain(60, 1)[:, :2]
    found = small_transformer(train.cuda(), val.cuda(), K, num_images=800)
    assert found == pytest.approx(small_transformer(train, val, K, num_images=800), abs=0.02)


def test_every_held_out_image_counts_alike_in_the_small_transformers_figure():
    train, val = chain(40, 0)[:, :3, :3], chain(34, 1)[:, :3, :3]
    val[32:] = torch.tensor([3, 0, 3])  # the last two, a batch of their own, are odd ones
    whole = small_transformer(train, val, K, num_images=320)
    first, last = (small_transformer(train, v, K, num_images=320) for v in val.split(32))
    assert last > first + 0.5
    assert whole == pytest.approx((32 * first + 2 * last) / 34, abs=1e-6)
