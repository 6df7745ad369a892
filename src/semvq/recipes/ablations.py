"""What the cells of the paper's ablations change (Tables 1, 5, 6; Fig. 6), by name.

The baseline is a tokenizer trained in one phase with the details' loss (alpha = 0) and the usage
entropy: Table 5's last row, Table 6's first. `scales.py` has the baselines and what stands on
them, `tables.py` says which cell is which recipe.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from semvq.losses.perceptual import LAYER_SETS
from semvq.rivals.factorized import FactorizedQuantizerConfig
from semvq.rivals.kmeans import KMeansQuantizerConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.quantize import QuantizerConfig, VectorQuantizerConfig
from semvq.training.tokenizer_task import TokenizerTaskConfig

Task = TokenizerTaskConfig


class Variant(NamedTuple):
    """One change to the baseline's task, in words and in fields."""

    words: str
    change: Callable[[Task], Task]


def _decoder(words: str, extra_blocks: int = 0, attention_pairs: int = 0) -> Variant:
    """The baseline with a stronger decoder, trained together with the encoder."""

    def change(task: Task) -> Task:
        assert isinstance(task.tokenizer, ConvTokenizerConfig)
        stronger = replace(
            task.tokenizer,
            decoder_extra_blocks=extra_blocks,
            decoder_attention_pairs=attention_pairs,
        )
        return replace(task, tokenizer=stronger)

    return Variant(words, change)


def _codes(words: str, change: Callable[[VectorQuantizerConfig], QuantizerConfig]) -> Variant:
    """The baseline with another rule for its codes."""

    def changed(task: Task) -> Task:
        before = task.tokenizer.quantizer
        assert isinstance(before, VectorQuantizerConfig)
        return replace(task, tokenizer=replace(task.tokenizer, quantizer=change(before)))

    return Variant(words, changed)


def _loss(words: str, alpha: float, layers: str = "sem") -> Variant:
    """The baseline with `alpha` of the layer set, and the rest of the details' (Eq. 3)."""

    def change(task: Task) -> Task:
        found = replace(task.perceptual, alpha=alpha, semantic_layers=LAYER_SETS[layers])
        return replace(task, perceptual=found)

    return Variant(words, change)


def _no_entropy(codes: VectorQuantizerConfig) -> VectorQuantizerConfig:
    return replace(codes, entropy_weight=0.0)


def _factorized(codes: VectorQuantizerConfig) -> FactorizedQuantizerConfig:
    # ViT-VQGAN's: eight times the codes, an eighth of the width, but for codes as narrow already
    width = min(codes.code_dim, 32)
    return FactorizedQuantizerConfig(8 * codes.num_codes, codes.code_dim, factor_dim=width)


def _kmeans(codes: VectorQuantizerConfig) -> KMeansQuantizerConfig:
    return KMeansQuantizerConfig(codes.num_codes, codes.code_dim)


VARIANTS: dict[str, Variant] = {
    "low": _loss("baseline: five layers of VGG16, alpha 0", 0.0),
    "conv2": _decoder("baseline +Conv x2", extra_blocks=2),
    "attention2": _decoder("baseline +Attention x2", attention_pairs=2),
    "no_entropy": _codes("baseline without the usage entropy", _no_entropy),
    "factorized": _codes("baseline +F&N: factorised, normalised codes", _factorized),
    "kmeans": _codes("baseline +K-means, without the usage entropy", _kmeans),
    "a": _loss("loss A: five layers and logits", 1.0, "A"),
    "b": _loss("loss B: A without relu1_2", 1.0, "B"),
    "c": _loss("loss C: B without relu2_2", 1.0, "C"),
    "d": _loss("loss D: C without relu3_3", 1.0, "D"),
    "sem": _loss("the semantic loss, alpha 1", 1.0),
    "e": _loss("loss E: logits alone", 1.0, "E"),
    "alpha20": _loss("alpha 0.2", 0.2),
    "alpha40": _loss("alpha 0.4", 0.4),
    "alpha60": _loss("alpha 0.6", 0.6),
    "alpha80": _loss("alpha 0.8", 0.8),
}


def _together(task: Task) -> Task:
    """One phase for what the paper does in two: the semantic loss and the attention decoder."""
    task = VARIANTS["sem"].change(task)
    return _decoder("", attention_pairs=1).change(task)


VARIANTS["sem_attention"] = Variant("alpha 1 with the attention decoder, one phase", _together)
