"""What the live page shows, as JSON-ready values: the package's own functions on open runs.

Pictures are PNG files as data: addresses. One call at a time: models keep state while they draw.
"""

import base64
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semvq.data.images import ImageSet, png_bytes, to_float
from semvq.data.pixels import crop_resize, to_tensor
from semvq.edit import box_mask, edit, soft_mask
from semvq.evaluation.features import strict_fp32
from semvq.evaluation.side_by_side import Entrant
from semvq.generators.base import Generator
from semvq.interop.packaged import packaged_photos
from semvq.metrics import bits, psnr
from semvq.photos import fruit
from semvq.probe.panels import heat_map
from semvq.probe.teacher_forcing import predict
from semvq.sample_commands import classes_of, classes_or_none
from semvq.serve.steps import Step, decoded_steps, watched
from semvq.tokenizer.model import Tokenizer

NUM_PHOTOS = 28  # packaged ones to choose from: two of each class

Options = Mapping[str, Any]  # sampling options of `Generator.sample`


class Studio:
    """Open runs and the packaged photos. Pixels are uint8 (H, W, 3) of any size."""

    def __init__(self, entrants: Sequence[Entrant]) -> None:
        self.entrants = {entrant.name: entrant for entrant in entrants}
        self.photos = ImageSet.open(fruit()[1]).spread(NUM_PHOTOS)
        spaces = {e.name: e.tokenizer.code_space_hash() for e in entrants}
        own = {spaces[e.name]: e.tokenizer for e in entrants}
        palettes = {space: Palette(tokenizer) for space, tokenizer in own.items()}
        self.palettes = {name: palettes[space] for name, space in spaces.items()}

    def overview(self) -> dict[str, Any]:
        """What there is to choose from."""
        photos = [self.photos.name(i) for i in range(len(self.photos))]
        runs = [_facts(entrant) for entrant in self.entrants.values()]
        return {"tokenizers": runs, "photos": photos}

    def photo(self, index: int) -> np.ndarray:
        """Pixels of a packaged photo; ValueError if there is none of this number."""
        if not 0 <= index < len(self.photos):
            raise ValueError(
                f"photo: expected a number below {len(self.photos)}, found {index}; choose another"
            )
        return self.photos.load(index)

    @torch.no_grad()
    def look(self, pixels: np.ndarray, label: str | None) -> dict[str, Any]:
        """The photo through every tokenizer, and what its AR transformer predicts of the codes."""
        with strict_fp32():  # the figures that `semvq probe` has
            return {"tokenizers": [self._look(e, pixels, label) for e in self.entrants.values()]}

    def _look(self, entrant: Entrant, pixels: np.ndarray, label: str | None) -> dict[str, Any]:
        tokenizer = entrant.tokenizer
        image = _square(pixels, tokenizer)
        codes = tokenizer.encode(image)
        decoded = tokenizer.decode(codes).clamp(-1, 1)
        found: dict[str, Any] = {
            "name": entrant.name,
            "photo": _address(image[0]),
            "codes": _address(self.palettes[entrant.name](tokenizer, codes)[0]),
            "numbers": codes[0].tolist(),
            "reconstruction": _address(decoded[0]),
            "figures": [["PSNR", f"{float(psnr(decoded, image)):.1f} dB"]],
        }
        if ar := entrant.generators.get("AR"):
            if self._is_foreign(label, ar):
                found["figures"].append(["AR", f"its classes have no '{label}'"])
                return found
            pictures, figures = _prediction(ar, tokenizer, codes, label)
            found |= pictures
            found["figures"] += figures
        return found

    def _is_foreign(self, label: str | None, generator: Generator) -> bool:
        """Whether it is the name of a class of other runs alone."""
        others = (g for e in self.entrants.values() for g in e.generators.values())
        known = label in generator.extra["classes"] or not generator.config.num_classes
        return not known and any(label in g.extra["classes"] for g in others)

    @torch.no_grad()
    def repaint(
        self,
        pixels: np.ndarray,
        name: str,
        box: str,
        label: str | None,
        seed: int,
        options: Options,
    ) -> dict[str, Any]:
        """As `semvq edit --num 1`, with the steps; `box` as of its `--box`."""
        tokenizer, generator = self._drawer(name, "NAR")
        image = _square(pixels, tokenizer)[0]
        mask = box_mask(box, tokenizer.config.resolution)
        classes = _optional_class(label, generator)
        with watched(generator) as passes:
            edited = edit(generator, tokenizer, image, mask, 1, classes, seed, **options)
        steps = decoded_steps(tokenizer, passes, edited.codes)
        weight = soft_mask(mask, tokenizer.config.factor / 2).to(image)
        steps = [Step(image + weight * (s.images - image), s.open) for s in steps]
        return _drawn(edited.codes, steps)

    @torch.no_grad()
    def sample(
        self, name: str, kind: str, label: str | None, seed: int, num: int, options: Options
    ) -> dict[str, Any]:
        """The first `num` samples that `semvq sample` draws; of a NAR run with the steps."""
        tokenizer, generator = self._drawer(name, kind)
        config = generator.config
        classes = classes_of(label, num, tuple(generator.extra["classes"]), config.num_classes)
        watching: AbstractContextManager[list[Tensor]] = watched(generator)
        if generator.causal:
            watching = nullcontext([])  # a step is a single code there: not shown
        with watching as passes:
            codes = generator.sample(num, classes, seed, **options)
        return _drawn(codes, decoded_steps(tokenizer, passes, codes))

    def _drawer(self, name: str, kind: str) -> tuple[Tokenizer, Generator]:
        """A tokenizer by its name, and the transformer of that kind on its codes."""
        able = [name for name, e in self.entrants.items() if kind in e.generators]
        if name not in able:
            known = ", ".join(able) or "none: no such run was given to `semvq serve`"
            raise ValueError(f"tokenizer: expected one with {kind} codes ({known}), found '{name}'")
        return self.entrants[name].tokenizer, self.entrants[name].generators[kind]


class Palette:
    """Colours of places: their embeddings along the three directions in which photos differ most.

    Alike codes so have alike colours. The directions are those of the packaged photos.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        images = packaged_photos(tokenizer.config.resolution).to(tokenizer.last_layer.device)
        rows = _embeddings(tokenizer, tokenizer.encode(images)).flatten(0, 2)
        self.centre = rows.mean(0)
        _, spread, directions = torch.linalg.svd(rows - self.centre, full_matrices=False)
        deviations = spread[:3] / len(rows) ** 0.5
        self.axes = directions[:3].T / (2 * deviations).clamp(min=1e-9)  # two of them reach the end

    def __call__(self, tokenizer: Tokenizer, codes: Tensor) -> Tensor:
        """Codes (B, D * h, w) as pictures (B, 3, h, w) in [-1, 1], a pixel for a place."""
        found = (_embeddings(tokenizer, codes) - self.centre) @ self.axes
        colours = found.new_zeros(*found.shape[:3], 3)
        colours[..., : found.shape[3]] = found  # fewer than three where embeddings are shorter
        return colours.clamp(-1, 1).movedim(3, 1)


def _embeddings(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Float (B, h, w, C); without gradients."""
    return tokenizer.quantizer.lookup(codes).detach().float().movedim(1, 3)


def _facts(entrant: Entrant) -> dict[str, Any]:
    generators = {
        kind: {
            "classes": list(g.extra["classes"]),
            "optional": bool(g.config.conditioning_dropout),  # can do without a class, and guide
        }
        for kind, g in entrant.generators.items()
    }
    return {
        "name": entrant.name,
        "subtitle": entrant.subtitle,
        "grid": list(entrant.tokenizer.grid),
        "resolution": entrant.tokenizer.config.resolution,
        "generators": generators,
    }


def _prediction(
    generator: Generator, tokenizer: Tokenizer, codes: Tensor, label: str | None
) -> tuple[dict[str, str], list[list[str]]]:
    """Pictures and figures of the teacher-forced prediction of codes (1, D * h, w)."""
    classes = _optional_class(label, generator)
    found = predict(generator, codes, classes)
    size, top = codes.shape[1:], float(found.cross_entropy.max())
    nats = float(found.cross_entropy.mean())
    pictures = {
        "prediction": _address(tokenizer.decode(found.codes)[0]),
        "surprise": _address(heat_map(found.cross_entropy, size, "viridis", 0.0, top)[0]),
    }
    return pictures, [
        ["AR top-1 accuracy", f"{float(found.correct.float().mean()):.3f}"],
        ["top-5", f"{float(found.in_top5.float().mean()):.3f}"],
        ["cross-entropy", f"{nats:.2f} nats ({bits(nats):.2f} bits) per code"],
    ]


def _optional_class(label: str | None, generator: Generator) -> Tensor | None:
    """A class tensor (1,); None where none is given, or the generator has no classes."""
    names = tuple(generator.extra["classes"])
    return classes_or_none(label if generator.config.num_classes else None, 1, names, generator)


def _square(pixels: np.ndarray, tokenizer: Tokenizer) -> Tensor:
    """The centre square, float (1, 3, R, R) in [-1, 1]."""
    image = to_float(to_tensor(crop_resize(pixels, tokenizer.config.resolution)))
    return image.unsqueeze(0).to(tokenizer.last_layer.device)


def _drawn(codes: Tensor, steps: Sequence[Step]) -> dict[str, Any]:
    shown = [
        {"pictures": [_address(image) for image in step.images], "open": step.open.int().tolist()}
        for step in steps
    ]
    return {"codes": codes.tolist(), "steps": shown}


def _address(image: Tensor) -> str:
    """An image (3, H, W) in [-1, 1] as a PNG inside a data: address."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}"
