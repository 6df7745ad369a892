"""Recipes for test_processes.py, opened by processes of their own."""

from dataclasses import replace

from semvq.training.recipe import Recipe
from tests.toy import toy_autoencoder, toy_generator, toy_phase1

LOOP = {"batch_size": 8, "log_every": "1 steps", "evaluate_every": "10 steps"}


def many_phase1() -> Recipe:
    """Adaptive weight and R1 in every other step, entropy over the whole batch, 20 steps."""
    recipe = toy_phase1(duration="20 steps", **LOOP)
    gan = replace(
        recipe.task.adversarial, start="0 steps", warmup="0 steps", r1_weight=1.0, r1_every=2
    )
    tokenizer = recipe.task.tokenizer
    quantizer = replace(tokenizer.quantizer, entropy_weight=0.1)
    task = replace(
        recipe.task, adversarial=gan, tokenizer=replace(tokenizer, quantizer=quantizer)
    )  # fmt: skip
    return replace(recipe, name="many_phase1", task=task)


def many_autoencoder() -> Recipe:
    """What has no codes to count."""
    return replace(toy_autoencoder(duration="4 steps", **LOOP), name="many_autoencoder")


def many_ar() -> Recipe:
    """No chance in it: no dropout, no dropped class."""
    recipe = toy_generator("ar", duration="20 steps", **LOOP)
    model = replace(recipe.task.generator, dropout=0.0, conditioning_dropout=0.0)
    task = replace(recipe.task, generator=model, num_views=4)
    return replace(recipe, name="many_ar", upstream="many_phase1", task=task)


def many_nar() -> Recipe:
    """Long enough to be killed; random masks, other ones in each process."""
    recipe = toy_generator("nar", duration="60 steps", save_every="5 steps", **LOOP)
    return replace(recipe, name="many_nar", upstream="many_phase1")


def split_nar() -> Recipe:
    """The same, each process with a part of the weights."""
    recipe = many_nar()
    return replace(recipe, name="split_nar", loop=replace(recipe.loop, split=True))


def whole_ar() -> Recipe:
    """In parts of a batch."""
    recipe = many_ar()
    return replace(recipe, name="whole_ar", loop=replace(recipe.loop, accumulate=2))


def split_ar() -> Recipe:
    """The same, each process with a part of the weights."""
    recipe = whole_ar()
    return replace(recipe, name="split_ar", loop=replace(recipe.loop, split=True))
