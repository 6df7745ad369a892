"""What a run is made of (images, code space, upstream run), so that nobody mixes two of them up.

A fact's value decides whether it is the same; its words let a person find the original. In a file
it is the pair of both. Older versions wrote the value alone, or nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semvq.data.images import DataConfig, ImageSet, open_train_val
from semvq.data.token_facts import read_facts
from semvq.files import read_config, reading

IMAGES, HELD_OUT, SPACE, UPSTREAM = "data", "held-out data", "code space", "upstream run"
AFRESH = "give the original one, or another --out to start afresh"
Given = Path | None  # None where the command line names none


class Fact(NamedTuple):
    """A hash or number, and words for people: where it lies and how much it is."""

    value: str
    words: str = ""

    def __str__(self) -> str:
        return self.value[:16] + (f" ({self.words})" if self.words else "")


def image_facts(train: ImageSet, val: ImageSet) -> dict[str, Fact]:
    """The images of a run, by names and sizes."""
    return {IMAGES: _of_images(train), HELD_OUT: _of_images(val)}


def cache_facts(folder: Path) -> dict[str, Fact]:
    """The images and the code space of the token cache `folder`. ValueError where there is none."""
    train, val = (read_facts(folder / part) for part in ("train", "val"))
    for facts in (train, val):
        facts.setdefault("place", f"the token cache {folder.absolute()}")
    return {IMAGES: _fact(train), HELD_OUT: _fact(val), SPACE: Fact(train["code_space_hash"])}


def upstream_facts(run: Path) -> dict[str, Fact]:
    """The weights and the code space of a tokenizer run, as its `config.json` names them."""
    keys, place = {UPSTREAM: "weights_sha256", SPACE: "code_space_hash"}, f"of {run.absolute()}"
    with reading(run):
        record = read_config(run, "tokenizer", "a tokenizer run")
        return {name: Fact(str(record[key]), place) for name, key in keys.items()}


def given_facts(
    config: DataConfig, data: Given, val: Given, tokens: Given, upstream: Given
) -> Iterator[tuple[str, Fact]]:
    """The facts that these paths alone decide. No network is built for it."""
    if data is not None:
        yield from image_facts(*open_train_val(data, val, config)).items()
    elif val is not None:
        yield HELD_OUT, _of_images(ImageSet.open(val))
    if tokens is not None:
        yield from cache_facts(tokens).items()
    if upstream is not None:
        yield from upstream_facts(upstream).items()


def check_facts(
    recorded: Mapping[str, Any], found: Iterable[tuple[str, Fact]], lead: str, advice: str
) -> None:
    """ValueError for the first of `found` that is on record with another value.

    `lead` and `advice` are the message's ends. What is not on record cannot be checked.
    """
    for name, fact in found:
        if name in recorded and (known := _read(recorded[name])).value != fact.value:
            raise ValueError(f"{lead} {name} {known}, this run has {fact}; {advice}")


def _of_images(images: ImageSet) -> Fact:
    facts = {"num_images": len(images), "classes": images.classes, "place": images.root.absolute()}
    return _fact(facts | {"fingerprint": images.fingerprint})


def _fact(facts: dict[str, Any]) -> Fact:
    classes = f" in {len(facts['classes'])} classes" if facts["classes"] else ""
    return Fact(facts["fingerprint"], f"{facts['num_images']} images{classes} of {facts['place']}")


def _read(recorded: Any) -> Fact:
    pair = isinstance(recorded, (list, tuple)) and len(recorded) == 2
    return Fact(*map(str, recorded)) if pair else Fact(str(recorded))
