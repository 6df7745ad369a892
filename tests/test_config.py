from dataclasses import dataclass

import pytest

from semvq.config import (
    Config,
    check_duration,
    config_hash,
    differences,
    duration_in_images,
    from_dict,
    to_dict,
    with_overrides,
)


@dataclass(frozen=True)
class Fruit(Config):
    weight: float = 1.0


@dataclass(frozen=True)
class Apple(Fruit):
    colours: tuple[str, ...] = ("red",)


@dataclass(frozen=True)
class Basket(Config):
    fruit: Fruit
    size: int = 3
    label: str | None = None
    full: bool = False


def test_json_round_trip_keeps_subclasses_and_tuples():
    basket = Basket(Apple(2.5, ("red", "green")), label="x")
    assert from_dict(Basket, to_dict(basket)) == basket


def test_overrides_reach_nested_fields_and_leave_the_original():
    basket = Basket(Apple())
    changed = with_overrides(basket, ["fruit.weight=2", 'fruit.colours=["green"]', "label=none"])
    assert changed == Basket(Apple(2.0, ("green",)), label="none")
    assert isinstance(changed.fruit.weight, float)
    assert basket == Basket(Apple())


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("fruit.wieght=2", "did you mean 'weight'"),
        ("size=big", "size: expected int, found 'big'"),
        ("size=true", "size: expected int, found True"),
        ("size=1.5", "size: expected int"),
        (
            "label=3",
            "label: expected text, found the number 3; a duration needs its unit, e.g. '500k",
        ),
        ("size", "expected KEY=VALUE"),
        ("size.x=1", "has no keys of its own"),
        ("fruit.colours=red", "expected a list"),
    ],
)
def test_wrong_overrides_say_what_was_expected(assignment, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(Basket(Apple()), [assignment])


def test_unknown_keys_classes_and_missing_keys_are_errors():
    good = to_dict(Basket(Apple()))
    with pytest.raises(ValueError, match="found key 'colour'"):
        from_dict(Basket, {**good, "colour": 1})
    with pytest.raises(ValueError, match="found class 'Pear'.*--code"):
        from_dict(Basket, {**good, "fruit": {"kind": "Pear"}})
    with pytest.raises(ValueError, match="expected a key 'fruit'"):
        from_dict(Basket, {"kind": "Basket"})


def test_hash_follows_values_and_differences_name_paths():
    a, b = Basket(Apple()), Basket(Apple(2.0))
    assert config_hash(a) == config_hash(Basket(Apple())) != config_hash(b)
    assert differences(a, b) == ["fruit.weight: expected 1.0, found 2.0"]


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("500k steps", 500_000 * 8),
        ("1 step", 8),
        ("1.5M images", 1_500_000),
        ("300 epochs", 300 * 50),
        ("20% of the run", 200),
        ("2.5 % of the run", 25),
    ],
)
def test_durations(text, images):
    assert duration_in_images(text, batch_size=8, epoch_size=50, total=1000) == images


@pytest.mark.parametrize("text", ["12", "12 days", "k steps", "-1 steps", ""])
def test_other_durations_are_errors(text):
    with pytest.raises(ValueError, match="expected a duration"):
        duration_in_images(text, 8, 50)


def test_a_duration_is_checked_before_it_is_counted():
    check_duration("3 epochs", "loop.duration")
    with pytest.raises(ValueError, match="loop.duration: expected a duration .*'500k steps'"):
        check_duration("3 days", "loop.duration")


def test_epochs_need_a_data_set_and_shares_a_whole():
    with pytest.raises(ValueError, match="needs a data set"):
        duration_in_images("3 epochs", 8, None)
    with pytest.raises(ValueError, match="duration of its own"):
        duration_in_images("3% of the run", 8, 50)
