"""How predictable codes are by themselves: a tokenizer judged before a transformer is trained.

Nats per code on held-out images: codes alone ("unigram", add-one smoothed), from their class, from
the code to the left, from the one above, from both ("ngram"; all by deleted interpolation, Jelinek
and Mercer 1980), and by a small transformer. What a model gains over the unigram is the mutual
information that it could put to use.

Never read one of these figures without the quality of the reconstruction beside it: a tokenizer
that lost the content of the image has the most predictable codes of all.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from semvq.generators.ar import ARConfig, ARTransformer
from semvq.metrics import code_counts
from semvq.probe.teacher_forcing import check_codes
from semvq.training.optim import OptimConfig, learning_rate

EM_STEPS = 50
HELD_OUT_EVERY = 8  # every eighth training image sets the weights of a mixture
NUM_BUCKETS = 64  # by the binary length of a count
# What a model mixes with the relative frequencies in its own context; an unseen pair of neighbours
# falls back on both of them: as mixtures, and as frequencies "alone", which only a sum makes whole.
PARTS = {
    "left": ("unigram",),
    "above": ("unigram",),
    "ngram": ("left", "above", "left alone", "above alone"),
    "class_unigram": ("unigram",),
}

SMALL_IMAGES = 16_000  # about a minute on two cores for 12 x 12 codes out of 512
BATCH = 32
SMALL_OPTIM = OptimConfig(
    learning_rate=2e-3, beta2=0.95, weight_decay=0.05, schedule="cosine", clip_norm=1.0
)
WARMUP_SHARE = 0.1


def separability(
    train_codes: Tensor,
    val_codes: Tensor,
    num_codes: int,
    train_classes: Tensor | None = None,
    val_classes: Tensor | None = None,
) -> dict[str, float]:
    """Mean nats per code of every model in `position_nats`, and `gain_<model>` over the unigram."""
    nats = position_nats(train_codes, val_codes, num_codes, train_classes, val_classes)
    figures = {name: float(values.mean()) for name, values in nats.items()}
    gains = {f"gain_{n}": figures["unigram"] - v for n, v in figures.items() if n != "unigram"}
    return figures | gains


def position_nats(
    train_codes: Tensor,
    val_codes: Tensor,
    num_codes: int,
    train_classes: Tensor | None = None,
    val_classes: Tensor | None = None,
) -> dict[str, Tensor]:
    """Nats float64 (M, h, w) that models fitted on the training codes pay for the held-out ones.

    Codes int64 (N, h, w) and (M, h, w), one view per photo (a second view of a photo would make
    its neighbours look known); classes int64 (N,) and (M,), None leaves out "class_unigram". Every
    eighth training image sets the weights of the mixtures, then all of them are counted. Memory
    grows with the number of codes there are, not with K x K. Raises ValueError for shapes that do
    not fit, codes out of range, or fewer than two training images.
    """
    _check(train_codes, val_codes, num_codes)
    train, val = _contexts(train_codes, num_codes), _contexts(val_codes, num_codes)
    if (train_classes is None) != (val_classes is None):
        raise ValueError("expected classes of training and held-out images or of neither")
    if train_classes is not None and val_classes is not None:
        train["class_unigram"] = _spread(train_classes, train_codes)
        val["class_unigram"] = _spread(val_classes, val_codes)
    held = torch.arange(len(train_codes), device=train_codes.device) % HELD_OUT_EVERY == 0
    counted, weighed = train_codes[~held], train_codes[held]
    draft = {"unigram": _unigram(counted, num_codes)[weighed]}
    shares = {"unigram": _unigram(train_codes, num_codes)[val_codes]}
    for model, context in train.items():
        some = ContextCounts(context[~held], counted, num_codes)
        parts, buckets = _parts(model, some, context[held], weighed, draft)
        weights = _bucket_weights(parts, buckets)
        draft |= _mixed(model, parts, weights[buckets])
        every = ContextCounts(context, train_codes, num_codes)
        parts, buckets = _parts(model, every, val[model], val_codes, shares)
        shares |= _mixed(model, parts, weights[buckets])
    return {model: -shares[model].log() for model in ("unigram", *train)}


def _parts(
    model: str, counts: "ContextCounts", context: Tensor, codes: Tensor, lower: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What each part of a mixture gives the codes, float64 (M, h, w, J), and buckets (M, h, w).

    `lower` holds what simpler models give them; the last part is the relative frequency (the first
    part, where a context never occurred). A bucket is the binary length of how often the context
    occurred: 0, 1, 2-3, 4-7, ... are one each.
    """
    parts = [lower[name] for name in PARTS[model]]
    total = counts.total(context)
    relative = counts.count(context, codes) / total.clamp(min=1).double()
    parts.append(torch.where(total > 0, relative, parts[0]))
    return torch.stack(parts, -1), torch.frexp(total.double()).exponent.long()


def _mixed(model: str, parts: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """What a mixture gives the codes, and what its relative frequencies alone do; (M, h, w)."""
    return {model: (parts * weights).sum(-1), f"{model} alone": parts[..., -1]}


def _check(train_codes: Tensor, val_codes: Tensor, num_codes: int) -> None:
    for name, codes in (("train_codes", train_codes), ("val_codes", val_codes)):
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ValueError(
                f"{name}: expected int64 codes (N, h, w), found {codes.dtype} {tuple(codes.shape)}"
            )
        check_codes(codes, num_codes)
    if len(train_codes) < 2:
        raise ValueError(f"train_codes: expected at least 2 images, found {len(train_codes)}")


def _contexts(codes: Tensor, num_codes: int) -> dict[str, Tensor]:
    """By model, the number (N, h, w) of what each code is predicted from; K is the border."""
    left = F.pad(codes[:, :, :-1], (1, 0), value=num_codes)
    above = F.pad(codes[:, :-1], (0, 0, 1, 0), value=num_codes)
    return {"left": left, "above": above, "ngram": left * (num_codes + 1) + above}


def _spread(classes: Tensor, codes: Tensor) -> Tensor:
    if tuple(classes.shape) != (len(codes),):
        raise ValueError(f"expected {len(codes)} classes, found a tensor {tuple(classes.shape)}")
    return classes.to(codes)[:, None, None].expand_as(codes)


def _unigram(codes: Tensor, num_codes: int) -> Tensor:
    """Add-one smoothed shares float64 (K,)."""
    counts = code_counts(codes, num_codes).double() + 1
    return counts / counts.sum()


class ContextCounts:
    """How often each code followed each context, as sorted numbers of the pairs that occurred.

    contexts and codes int64 of one shape; contexts are numbers below 2**63 / K.
    """

    def __init__(self, contexts: Tensor, codes: Tensor, num_codes: int) -> None:
        self.num_codes = num_codes
        pairs = (contexts * num_codes + codes).flatten()
        self.pairs, self.counts = torch.unique(pairs, return_counts=True)
        self.contexts, owner = torch.unique_consecutive(
            self.pairs // num_codes, return_inverse=True
        )
        self.totals = torch.zeros_like(self.contexts).index_add_(0, owner, self.counts)

    def total(self, contexts: Tensor) -> Tensor:
        """How often each of `contexts` occurred; int64 of its shape."""
        return _look_up(self.contexts, self.totals, contexts)

    def count(self, contexts: Tensor, codes: Tensor) -> Tensor:
        """How often each of `codes` followed its context; int64 of their shape."""
        return _look_up(self.pairs, self.counts, contexts * self.num_codes + codes)


def _look_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The value of each wanted key among sorted `keys`, 0 where it is not there."""
    place = torch.searchsorted(keys, wanted.contiguous()).clamp_(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, values[place], 0)


def _bucket_weights(shares: Tensor, buckets: Tensor) -> Tensor:
    """Weights (NUM_BUCKETS, J) from shares (..., J); a bucket without data takes the one below's.

    Rare contexts tell little of what follows, so how far to trust them depends on their count.
    """
    present = buckets.unique().tolist()
    fitted = {b: em_weights(shares[buckets == b])[0] for b in present}
    # Below the first bucket with data, the first one's.
    source = [max((p for p in present if p <= b), default=present[0]) for b in range(NUM_BUCKETS)]
    return torch.stack([fitted[b] for b in source])


def em_weights(shares: Tensor, steps: int = EM_STEPS) -> tuple[Tensor, list[float]]:
    """Weights (J,) of the mixture that gives T observations the most, and the objective per step.

    shares float64 (T, J): what each component gives each observation. The objective, the log
    likelihood plus the sum of log weights, never falls. Its second part is one made-up observation
    per component: no weight becomes 0 for want of data, and no code infinitely surprising.
    """
    weights = torch.full_like(shares[0], 1 / shares.shape[1])
    objective = []
    for _ in range(steps):
        mixed = shares @ weights
        objective.append(float(mixed.log().sum() + weights.log().sum()))
        if len(objective) > 1 and objective[-1] - objective[-2] < 1e-7 * len(shares):
            break
        claims = weights * (shares.T @ mixed.reciprocal()) + 1
        weights = claims / claims.sum()
    return weights, objective


def small_transformer(
    train_codes: Tensor,
    val_codes: Tensor,
    num_codes: int,
    num_images: int = SMALL_IMAGES,
    seed: int = 0,
) -> float:
    """Nats per held-out code of a small AR transformer (2 layers x 128) after `num_images` images.

    Codes int64 (N, h, w) and (M, h, w) of one grid; trains where they are, without classes. Equal
    seeds give equal figures on one CPU, and torch's global generator is left as it was.
    Compare tokenizers on the same training images only: of few images the model learns each by
    heart. Raises ValueError as `position_nats`, for num_images below 1, or grids that differ.
    """
    _check(train_codes, val_codes, num_codes)
    if num_images < 1:
        raise ValueError(f"num_images: expected at least 1, found {num_images}")
    height, width = train_codes.shape[1:]
    if val_codes.shape[1:] != train_codes.shape[1:]:
        found = tuple(val_codes.shape)
        raise ValueError(
            f"val_codes: expected (M, {height}, {width}) as in training, found {found}"
        )
    config = ARConfig(
        num_layers=2, width=128, num_heads=4, dropout=0.0, num_codes=num_codes,
        grid_height=height, grid_width=width,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = config.build()
    model.to(train_codes.device)
    with torch.enable_grad():
        _train(model, train_codes, num_images, seed)
    chunks = val_codes.split(BATCH)
    return sum(float(model.evaluation_loss(c)) * len(c) for c in chunks) / len(val_codes)


def _train(model: ARTransformer, codes: Tensor, num_images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(num_images / len(codes))
    order = torch.cat([torch.randperm(len(codes), generator=generator) for _ in range(epochs)])
    optimizer = SMALL_OPTIM.build(dict(model.named_parameters()))
    warmup, seen = round(WARMUP_SHARE * num_images), 0
    for rows in order[:num_images].split(BATCH):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(SMALL_OPTIM, seen, warmup, num_images)
        loss, _ = model.training_loss(codes[rows.to(codes.device)])
        optimizer.zero_grad()
        loss.backward()
        assert SMALL_OPTIM.clip_norm is not None
        torch.nn.utils.clip_grad_norm_(model.parameters(), SMALL_OPTIM.clip_norm)
        optimizer.step()
        seen += len(rows)
