"""Teacher-forced prediction (Sec. 3.2): one pass equals asking position by position."""

import math

import pytest
import torch

from semvq.generators.ar import ARConfig, ARTransformer
from semvq.generators.nar import NARConfig
from semvq.probe import teacher_forcing
from semvq.probe.teacher_forcing import Prediction, predict

K = 11


def tiny(num_classes: int = 0) -> ARTransformer:
    torch.manual_seed(0)
    return ARConfig(
        num_layers=2, width=16, num_heads=2, num_codes=K, grid_height=3, grid_width=4,
        num_classes=num_classes,
    ).build()  # fmt: skip


def some_codes() -> torch.Tensor:
    return torch.randint(0, K, (5, 3, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_classes", [0, 4])
def test_one_pass_equals_stepwise_argmax_with_the_true_context(num_classes):
    generator, codes = tiny(num_classes), some_codes()
    classes = torch.tensor([0, 3, 2, 1, 0]) if num_classes else None
    found = predict(generator, codes, classes)
    generator.eval()
    cache, previous, flat = generator.new_cache(5), None, codes.flatten(1)
    with torch.no_grad():
        for i in range(12):
            logits = generator.step(previous, cache, classes)
            previous = flat[:, i]  # the true code, not the predicted one
            assert torch.equal(found.codes.flatten(1)[:, i], logits.argmax(-1))
            nats = -logits.log_softmax(-1).gather(1, flat[:, i : i + 1])[:, 0]
            assert torch.allclose(found.cross_entropy.flatten(1)[:, i], nats, atol=1e-5)


def test_shapes_and_agreement_with_the_evaluation_loss():
    generator, codes = tiny(), some_codes()
    found = predict(generator, codes)
    assert found.codes.shape == found.correct.shape == found.cross_entropy.shape == (5, 3, 4)
    assert found.codes.dtype == torch.int64 and found.correct.dtype == torch.bool
    assert torch.equal(found.correct, found.codes == codes)
    assert float(found.cross_entropy.mean()) == pytest.approx(
        float(generator.evaluation_loss(codes))
    )
    assert not found.cross_entropy.requires_grad


def test_dropout_is_off_and_the_mode_comes_back():
    generator, codes = tiny().train(), some_codes()
    assert torch.equal(
        predict(generator, codes).cross_entropy, predict(generator, codes).cross_entropy
    )
    assert generator.training


def test_any_callable_will_do():
    codes = torch.tensor([[[0, 1], [2, 1]]])

    def logits(codes: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return torch.tensor([0.0, math.log(2.0), 0.0]).expand(1, 4, 3)

    found = predict(logits, codes)
    assert found.codes.tolist() == [[[1, 1], [1, 1]]]
    assert found.correct.tolist() == [[[False, True], [False, True]]]
    expected = torch.tensor([[[4.0, 2.0], [4.0, 2.0]]]).log()
    assert torch.allclose(found.cross_entropy, expected)


def test_ties_go_to_the_lowest_code():
    found = predict(lambda codes, classes: torch.zeros(1, 4, 3), torch.zeros(1, 2, 2).long())
    assert found.codes.tolist() == [[[0, 0], [0, 0]]]


def test_what_it_refuses():
    nar = NARConfig(
        num_layers=1, width=8, num_heads=1, num_codes=K, grid_height=3, grid_width=4
    ).build()
    with pytest.raises(ValueError, match="expected an AR generator, found NARTransformer"):
        predict(nar, some_codes())
    with pytest.raises(ValueError, match=r"expected codes \(B, 3, 4\)"):
        predict(tiny(), some_codes().transpose(1, 2))
    with pytest.raises(ValueError, match="expected codes below 11, found 0 to 12"):
        predict(tiny(), torch.tensor([[0, 1, 2, 12]]).expand(1, 3, 4))


def scores_as_model(scores: torch.Tensor):
    return lambda codes, classes: scores


def naive_rank(row: list[float], code: int) -> int:
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    return order.index(code)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_top5_ranks_as_a_naive_sort_where_lower_codes_win_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (3, 8, K), generator=generator).float()
    codes = torch.randint(0, K, (3, 2, 4), generator=generator)
    found = predict(scores_as_model(scores), codes)
    naive = [
        naive_rank(row.tolist(), int(code))
        for row, code in zip(scores.flatten(0, 1), codes.flatten())
    ]
    assert found.in_top5.flatten().tolist() == [r < 5 for r in naive]
    assert found.correct.flatten().tolist() == [r == 0 for r in naive]
    assert found.codes.flatten().tolist() == [
        min(range(K), key=lambda k: (-row[k], k)) for row in scores.flatten(0, 1).tolist()
    ]
    assert 0 < found.in_top5.float().mean() < 1


def test_scores_that_only_their_logarithms_tie_still_rank():
    row = torch.zeros(1, 1, 7)
    row[..., 6] = 1e-9
    assert len(row.log_softmax(-1).unique()) == 1
    found = predict(scores_as_model(row), torch.tensor([[[6]]]))
    assert found.correct.item() and found.in_top5.item()
    low = predict(scores_as_model(row), torch.tensor([[[4]]]))
    assert not low.in_top5.item(), "the 6th: after code 6 and codes 0 to 3"
    assert predict(scores_as_model(row), torch.tensor([[[3]]])).in_top5.item()


def test_entropy_and_confidence_by_hand():
    shares = torch.tensor([0.5, 0.25, 0.25, 0.0])
    scores = shares.log().expand(1, 2, 4)  # a code that cannot be has a logit of -inf
    found = predict(scores_as_model(scores), torch.tensor([[[1, 3]]]))
    assert torch.allclose(found.entropy, torch.full((1, 1, 2), 1.5 * math.log(2)))
    assert torch.allclose(found.confidence, torch.full((1, 1, 2), 0.5))
    assert found.cross_entropy[0, 0, 0].item() == pytest.approx(math.log(4))
    assert found.cross_entropy[0, 0, 1].item() == math.inf


def test_entropy_of_a_generator_is_that_of_its_softmax():
    generator, codes = tiny(), some_codes()
    found = predict(generator, codes)
    with torch.no_grad():
        log_share = generator.eval()(codes.flatten(1)).double().log_softmax(-1)
    entropy = -(log_share.exp() * log_share).sum(-1).view_as(codes)
    assert torch.allclose(found.entropy.double(), entropy, atol=1e-5)
    confidence = log_share.exp().amax(-1).view_as(codes)
    assert torch.allclose(found.confidence.double(), confidence, atol=1e-6)
    assert found.entropy.dtype == found.confidence.dtype == torch.float32


def test_chunks_change_nothing(monkeypatch):
    generator, codes = tiny(), some_codes()
    whole = predict(generator, codes)
    monkeypatch.setattr(teacher_forcing, "_CHUNK", 7 * K)  # 60 rows in nine pieces
    for a, b in zip(whole, predict(generator, codes)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_classes", [0, 4])
def test_an_images_figures_do_not_depend_on_its_batch(num_classes):
    generator, codes = tiny(num_classes), some_codes()
    classes = torch.tensor([0, 3, 2, 1, 0]) if num_classes else None
    together = predict(generator, codes, classes)
    order = torch.tensor([3, 0, 4])
    others = predict(generator, codes[order], None if classes is None else classes[order])
    for i in range(5):
        alone = predict(generator, codes[[i]], None if classes is None else classes[[i]])
        assert_close_predictions(alone, Prediction(*(x[[i]] for x in together)))
    assert_close_predictions(others, Prediction(*(x[order] for x in together)))


def assert_close_predictions(a: Prediction, b: Prediction) -> None:
    for name, x, y in zip(Prediction._fields, a, b):
        if x.is_floating_point():
            assert torch.allclose(x, y, rtol=0, atol=1e-6), name
        else:
            assert torch.equal(x, y), name


def test_bfloat16_logits_are_judged_in_float32():
    scores = torch.randn(2, 4, K, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    a = predict(scores_as_model(scores), codes)
    b = predict(scores_as_model(scores.float()), codes)
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_it_refuses_logits_it_cannot_judge():
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected logits \(2, 4, K\), found \(1, 4, 3\)"):
        predict(scores_as_model(torch.zeros(1, 4, 3)), codes)
    broken = torch.zeros(2, 4, 3)
    broken[1, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="found NaN"):
        predict(scores_as_model(broken), codes)
    with pytest.raises(ValueError, match="expected codes, found none"):
        predict(scores_as_model(torch.zeros(0, 4, 3)), codes[:0])
