"""Recipes for the kill test, in a file of their own as a user would write them."""

from dataclasses import replace

from semvq.training.recipe import Recipe
from tests.toy import toy_generator, toy_phase1, toy_phase2

LONG = {"duration": "60 steps", "save_every": "5 steps", "evaluate_every": "20 steps"}


def kill_phase1() -> Recipe:
    return replace(toy_phase1(**LONG), name="kill_phase1")


def kill_phase2() -> Recipe:
    return replace(toy_phase2(**LONG), name="kill_phase2", upstream="kill_phase1")


def kill_ar() -> Recipe:
    return replace(toy_generator("ar", **LONG), name="kill_ar", upstream="kill_phase1")


def kill_nar() -> Recipe:
    return replace(toy_generator("nar", **LONG), name="kill_nar", upstream="kill_phase1")
