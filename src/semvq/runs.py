"""Opening finished runs: a tokenizer, or a generator with a decoder that speaks its codes."""

from pathlib import Path

import torch

from semvq.generators.base import Generator
from semvq.interop import load_generator, load_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.training.runs import find_upstream, read_recipe


def open_tokenizer(run: Path, device: torch.device) -> Tokenizer:
    """The tokenizer of a run folder, ready for inference."""
    return load_tokenizer(run).to(device).eval().requires_grad_(False)


def open_generator(
    run: Path, decoder: Path | None, device: torch.device
) -> tuple[Generator, Tokenizer, tuple[str, ...]]:
    """A generator, the tokenizer that draws its codes, and its class names.

    `decoder` None means the run's own upstream. Any decoder with the same code space will do
    (Fig. 8: one transformer, both phases); another code space is refused, both named.
    """
    generator = load_generator(run).to(device).eval().requires_grad_(False)
    facts = generator.extra
    if decoder is None:
        decoder = find_upstream(read_recipe(run), run, None, flag="--decoder")
        assert decoder is not None, "a generator recipe names its upstream"
    tokenizer = open_tokenizer(decoder, device)
    expected, found = facts["code_space_hash"], tokenizer.code_space_hash()
    if expected != found:
        raise ValueError(
            f"{decoder}: expected the code space {expected[:16]} that {run} was trained on, "
            f"found {found[:16]}; give --decoder a run of that code space"
        )
    return generator, tokenizer, tuple(facts["classes"])
