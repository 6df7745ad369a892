"""At which size the ablations run: the paper's, minutes of a GPU, or two CPU cores.

A scale is a baseline tokenizer with transformers for its codes; every variant of `ablations.py`
can be had of it. `paper` has D15's lengths; the others are ours.
"""

from dataclasses import dataclass, replace
from typing import Any

from semvq.recipes.ablations import VARIANTS
from semvq.recipes.base import (
    ABLATION_TOKENIZER,
    ABLATION_TRANSFORMER,
    ABLATION_TRANSFORMER_2X,
    PHASE2,
    autoencoder_phase,
    decoder_phase,
    tokenizer_task,
)
from semvq.recipes.fruit import (
    DECODER_IMAGES,
    fruit_ar,
    fruit_autoencoder,
    fruit_nar,
    fruit_phase1,
)
from semvq.recipes.imagenet256 import (
    imagenet256_ar,
    imagenet256_ar_l,
    imagenet256_nar,
    imagenet256_phase1,
)
from semvq.recipes.own_photos import (
    labelled64_ar,
    labelled64_nar,
    labelled64_phase1,
    photos128_ar,
    photos128_nar,
    photos128_phase1,
)
from semvq.rivals.kmeans import KMeansQuantizerConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe


@dataclass(frozen=True)
class Scale:
    """The ablations' tokenizers and what stands on them; recipes are `prefix`_variant[_kind].

    `phase1` is the recipe of a tokenizer; the ablations' baseline, "low", is all of it but for the
    loss, and what a variant changes is changed in that. `start` is the length of an autoencoder
    without codes that all variants start from, None for none. `kinds` are transformers by name.
    `tuned` is phase 2's length and rate; `estimates` are k-means' `every` and `until`, steps.
    """

    prefix: str
    about: str
    phase1: Recipe
    start: str | None
    kinds: dict[str, Recipe]
    tuned: tuple[str, float]
    estimates: tuple[int, int]

    def autoencoder(self) -> Recipe:
        """What all variants start from."""
        assert self.start is not None
        return autoencoder_phase(
            replace(self.phase1, name=f"{self.prefix}_low"),
            name=f"{self.prefix}_autoencoder",
            summary=f"{self.about}: what all its tokenizers start from, without codes",
            duration=self.start,
        )

    def tokenizer(self, variant: str) -> Recipe:
        """The ablations' baseline, with the variant's change."""
        words, change = VARIANTS[variant]
        task = change(VARIANTS["low"].change(tokenizer_task(self.phase1)))
        codes = task.tokenizer.quantizer
        if isinstance(codes, KMeansQuantizerConfig):
            every, until = self.estimates
            codes = replace(codes, every=every, until=until)
            task = replace(task, tokenizer=replace(task.tokenizer, quantizer=codes))
        return replace(
            self.phase1,
            name=f"{self.prefix}_{variant}",
            summary=f"{self.about}: {words}",
            task=task,
            upstream=f"{self.prefix}_autoencoder" if self.start else None,
            published=(),
        )

    def phase2(self, variant: str) -> Recipe:
        """Codes of the variant frozen, attention decoder, alpha = 0 (Sec. 3.4)."""
        duration, learning_rate = self.tuned
        return decoder_phase(
            self.tokenizer(variant),
            name=f"{self.prefix}_{variant}_phase2",
            summary=f"{self.about}: phase 2 of {variant}",
            duration=duration,
            learning_rate=learning_rate,
            attention_pairs=1,
        )

    def transformer(self, variant: str, kind: str) -> Recipe:
        """A transformer on the variant's codes."""
        recipe, codes = self.kinds[kind], self.tokenizer(variant)
        task = recipe.task
        assert isinstance(task, GeneratorTaskConfig)
        quantizer = tokenizer_task(codes).tokenizer.quantizer
        return replace(
            recipe,
            name=f"{codes.name}_{kind}",
            summary=f"{self.about}: {kind.replace('_', '-').upper()} transformer on {variant}'s",
            task=replace(task, generator=replace(task.generator, num_codes=quantizer.num_codes)),
            upstream=codes.name,
            published=(),
        )


def _lasting(recipe: Recipe, duration: str, **task: Any) -> Recipe:
    """The recipe for another length, with these fields of its task."""
    changed = replace(recipe.task, **task)
    return replace(recipe, task=changed, loop=replace(recipe.loop, duration=duration))


def _for_minutes(recipe: Recipe, duration: str, **task: Any) -> Recipe:
    """The same, judged and saved four times, and not 20: a run is of minutes."""
    found = _lasting(recipe, duration, **task)
    quarter = "25% of the run"
    return replace(found, loop=replace(found.loop, evaluate_every=quarter, save_every=quarter))


def _wider(recipe: Recipe, width: int) -> Recipe:
    """A transformer of another width, heads as wide as before."""
    task = recipe.task
    assert isinstance(task, GeneratorTaskConfig)
    before = task.generator
    heads = width * before.num_heads // before.width
    return replace(
        recipe, task=replace(task, generator=replace(before, width=width, num_heads=heads))
    )


def paper() -> Scale:
    """Table 4's recipes at a fifth of their steps (D15), from nothing."""
    return Scale(
        prefix="ablation256",
        about="ImageNet ablation, lengths assumed (D15)",
        phase1=_lasting(imagenet256_phase1(), ABLATION_TOKENIZER),
        start=None,
        kinds={
            "ar": _lasting(imagenet256_ar(), ABLATION_TRANSFORMER),
            "ar_l": _lasting(imagenet256_ar_l(), ABLATION_TRANSFORMER),
            "ar_l_2x": _lasting(imagenet256_ar_l(), ABLATION_TRANSFORMER_2X),
            "nar": _lasting(imagenet256_nar(), ABLATION_TRANSFORMER),
        },
        tuned=(PHASE2, 5e-5),
        estimates=(2000, 30_000),  # VQFR's
    )


def paper_whole() -> Scale:
    """`paper` at full length, for what stands beside the recipes of the paper's own path."""
    return replace(
        paper(),
        prefix="imagenet256",
        about="ImageNet, the paper's lengths",
        phase1=imagenet256_phase1(),
        kinds={"ar": imagenet256_ar(), "nar": imagenet256_nar()},
    )


def mini() -> Scale:
    """labelled64 for minutes: 16.4M tokenizer, 39M transformers, 16 x 16 codes of 1,024."""
    ar, nar = labelled64_ar(), labelled64_nar()
    return Scale(
        prefix="mini64",
        about="labelled photos, 64 px, minutes of a GPU",
        phase1=_for_minutes(labelled64_phase1(), "80k images"),
        start="40k images",
        kinds={
            "ar": _for_minutes(ar, "250k images", num_views=2),
            "ar_l": _for_minutes(_wider(ar, 768), "250k images", num_views=2),
            "ar_l_2x": _for_minutes(_wider(ar, 768), "500k images", num_views=2),
            "nar": _for_minutes(nar, "250k images", num_views=2),
            "nar_l": _for_minutes(_wider(nar, 768), "250k images", num_views=2),
        },
        tuned=("40k images", 1.5e-4),
        estimates=(25, 375),  # as VQFR's in `paper`: every 2 % of the run, until 30 %
    )


def mini_photos() -> Scale:
    """photos128 for minutes: unlabelled photos, f = 8 (Table 3)."""
    ar, nar = photos128_ar(), photos128_nar()
    return Scale(
        prefix="mini128",
        about="any photos, 128 px, minutes of a GPU",
        phase1=_for_minutes(photos128_phase1(), "40k images"),
        start="40k images",
        kinds={
            "ar": _for_minutes(ar, "150k images", num_views=2),
            "nar": _for_minutes(nar, "150k images", num_views=2),
        },
        tuned=("20k images", 1.5e-4),
        estimates=(25, 180),  # until 29 % of the run as VQFR's, but every 4 %
    )


def tiny() -> Scale:
    """The demo's networks and lengths: a row in minutes of two CPU cores."""
    ar, nar = fruit_ar(), fruit_nar()
    twice = f"{2 * int(ar.loop.duration.split()[0])} images"
    return Scale(
        prefix="tiny48",
        about="packaged fruit photos, 48 px, two CPU cores",
        phase1=fruit_phase1(),
        start=fruit_autoencoder().loop.duration,
        kinds={
            "ar": ar,
            "ar_l": _wider(ar, 384),
            "ar_l_2x": _lasting(_wider(ar, 384), twice),
            "nar": nar,
            "nar_l": _wider(nar, 384),
        },
        tuned=(DECODER_IMAGES, 5e-4),
        estimates=(10, 90),
    )


def recipes(scale: Scale) -> list[Recipe]:
    """All of a scale, each after what it starts from."""
    found = [scale.autoencoder()] if scale.start else []
    found += [scale.tokenizer(variant) for variant in VARIANTS]
    found.append(scale.phase2("sem"))
    for variant in VARIANTS:
        full = variant in ("low", "conv2", "attention2", "sem")
        kinds = scale.kinds if full else [k for k in scale.kinds if k in ("ar", "nar")]
        found += [scale.transformer(variant, kind) for kind in kinds]
    return found
