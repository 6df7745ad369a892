"""Generator configurations: parameter counts, sizes and inputs that are refused."""

import pytest
import torch

from semvq.config import from_dict, to_dict
from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator, GeneratorConfig
from semvq.generators.nar import NARConfig


def tiny(kind: type[ARConfig] | type[NARConfig], num_classes: int = 3) -> Generator:
    return kind(
        num_layers=1, width=16, num_heads=2, num_codes=11, grid_height=4, grid_width=3,
        num_classes=num_classes,
    ).build()  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "width", "num_classes", "expected"),
    [
        (ARConfig, 768, 0, 171_879_936),
        (ARConfig, 768, 1000, 172_647_936),
        (ARConfig, 1024, 1000, 305_694_720),
        (NARConfig, 768, 1000, 172_457_193),
        (NARConfig, 1024, 1000, 305_701_865),
        (NARConfig, 768, 0, 171_687_425),  # ours: no prefix, vocabulary 1025, 256 positions
    ],
)
def test_parameter_counts_of_the_paper(kind, width, num_classes, expected):
    config = kind(
        num_layers=24, width=width, num_heads=16, num_codes=1024, grid_height=16, grid_width=16,
        num_classes=num_classes,
    )  # fmt: skip
    with torch.device("meta"):
        generator = config.build()
    assert sum(p.numel() for p in generator.parameters()) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected at least 1, found 0"),
        ({"num_layers": 10**9}, "num_layers: expected at most"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"num_classes": -1}, "num_classes"),
        ({"dropout": 1.5}, "dropout: expected a share"),
        ({"num_classes": 0, "conditioning_dropout": 0.1}, "conditioning_dropout"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes, message):
    good = to_dict(tiny(ARConfig).config)
    with pytest.raises(ValueError, match=message):
        from_dict(GeneratorConfig, good | changes)


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_classes_that_do_not_fit_are_refused(kind):
    codes, classes = torch.zeros(6, 4, 3, dtype=torch.int64), torch.arange(6) % 3
    with pytest.raises(ValueError, match="expected classes .* found none"):
        tiny(kind).training_loss(codes)
    with pytest.raises(ValueError, match="expected no classes"):
        tiny(kind, 0).training_loss(codes, classes)
    with pytest.raises(ValueError, match="expected 6 classes"):
        tiny(kind).training_loss(codes, classes[:2])
    with pytest.raises(ValueError, match=r"expected codes \(B, 4, 3\), found \(6, 12\)"):
        tiny(kind).training_loss(codes.flatten(1), classes)
