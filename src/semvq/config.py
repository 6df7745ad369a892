"""Frozen dataclasses as configuration: JSON, overrides by path, hashes, durations with units.

A recipe is a Python function that returns such a dataclass; everything a run needs is in it.
An unknown key is an error. A field may be declared as a base class (say `QuantizerConfig`); the
JSON then names the subclass under "kind", and any subclass that has been imported is found.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """Base of every configuration class: subclass it with `@dataclass(frozen=True)`."""


def to_dict(config: Config) -> dict[str, Any]:
    """JSON-ready nested dict; every config carries its class name under "kind"."""
    fields = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return {"kind": type(config).__name__, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def from_dict(base: type[C], data: Any, where: str = "config") -> C:
    """Inverse of `to_dict`. `base` is the class, or a base class of the one `data` names.

    Raises ValueError for an unknown class, an unknown or missing key, or a value of another type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object for {base.__name__}, found {data!r}")
    values = dict(data)
    cls = _find_class(base, values.pop("kind", base.__name__), where)
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise ValueError(f"{where}: {unknown('key', key, names)}")
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise ValueError(f"{where}: expected a key '{f.name}' for {cls.__name__}, found none")
    return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def with_overrides(config: C, assignments: Iterable[str]) -> C:
    """Apply `a.b.c=value` strings (values in JSON, or bare words) and return a new config.

    All are applied before the result is checked, so that fields may change together.
    """
    tree = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ValueError(f"expected KEY=VALUE, found '{assignment}'")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        _assign(tree, path.strip(), value)
    return from_dict(type(config), tree, "recipe")


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a key that exists, by dotted path, in a nested dict."""
    *parents, last = path.split(".")
    for key in parents:
        _known_key(tree, key, path)
        if not isinstance(tree[key], dict):
            raise ValueError(f"{path}: '{key}' is {tree[key]!r} and has no keys of its own")
        tree = tree[key]
    _known_key(tree, last, path)
    tree[last] = value


def _known_key(tree: dict[str, Any], key: str, path: str) -> None:
    names = [name for name in tree if name != "kind"]
    if key not in names:
        raise ValueError(f"{path}: {unknown('key', key, names)}")


def config_hash(config: Config) -> str:
    """Sixteen hex digits over the canonical JSON; equal configs have equal hashes."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(expected: Config, found: Config) -> list[str]:
    """Dotted paths whose values differ, each as `path: expected X, found Y`."""
    a, b = _flatten(to_dict(expected)), _flatten(to_dict(found))
    keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
    return [f"{k}: expected {a.get(k)!r}, found {b.get(k)!r}" for k in keys]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _find_class(base: type[C], name: Any, where: str) -> type[C]:
    family = {base.__name__: base}
    stack: list[type[C]] = [base]
    while stack:
        for child in stack.pop().__subclasses__():
            family[child.__name__] = child
            stack.append(child)
    if not isinstance(name, str) or name not in family:
        raise ValueError(
            f"{where}: {unknown('class', name, list(family))}; if the class is your own, "
            "pass the Python file that defines it with --code"
        )
    return family[name]


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against the annotation `hint`, converting JSON lists, ints and objects."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _coerce(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where}: {unknown('value', value, list(get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, found {value!r}")
        return tuple(_coerce(get_args(hint)[0], v, where) for v in value)
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(
            f"{where}: expected text, found the number {value}; a duration needs its unit, "
            f"e.g. {_EXAMPLES}"
        )
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def unknown(what: str, found: Any, known: Sequence[Any]) -> str:
    """A message's words for a name that is none of `known`, with the closest of them if any."""
    names = ", ".join(map(str, known))
    return f"expected one of {names}, found {what} '{found}'{did_you_mean(found, known)}"


def did_you_mean(found: Any, known: Iterable[Any]) -> str:
    """ " (did you mean 'X'?)" for the closest of `known`; nothing where none is close."""
    close = difflib.get_close_matches(str(found), [str(k) for k in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


# Durations carry their unit, so that a recipe reads like the paper: "500k steps", "300 epochs".

_EXAMPLES = "'500k steps', '300 epochs', '12M images' or '20% of the run'"
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kM]?)\s*(step|epoch|image)s?|(%) of the run)")


def duration_in_images(
    text: str, batch_size: int, epoch_size: int | None, total: int | None = None
) -> int:
    """Images seen in a duration: "500k steps", "300 epochs", "12M images" or "20% of the run".

    `batch_size` counts images per optimiser step; `epoch_size` images per epoch, None when the
    data set is not known; `total` the whole run's images, None where a share makes no sense.
    Raises ValueError for another form, or for a unit whose size is not known.
    """
    match = _parts(text)
    if match[4]:
        if total is None:
            raise ValueError(f"expected a duration of its own, found the share '{text}'")
        return round(float(match[1]) / 100 * total)
    number = float(match[1]) * _SCALES[match[2]]
    if match[3] == "step":
        return round(number) * batch_size
    if match[3] == "image":
        return round(number)
    if epoch_size is None:
        raise ValueError(f"'{text}' needs a data set: its size is not known here")
    return round(number * epoch_size)


def check_duration(text: str, name: str) -> None:
    """Raise ValueError, led by the field's `name`, unless `text` has the form of a duration."""
    try:
        _parts(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _parts(text: str) -> re.Match[str]:
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"expected a duration such as {_EXAMPLES}, found '{text}'")
    return match
