"""The recipe of a store: everything that can change a number in it, as JSON values.

Its digest is the identity of a store, of a run that read it, and of an answer. Whoever compares two
recipes names the field that differs. Versions of libraries are no part of it: a store lists those
that wrote to it (docs/store-format.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Facts of an encoder that say how it was made, and cannot change what it makes.
NOT_RECIPE = frozenset({"versions"})


def recipe_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe in a store's attributes: its encoder, kind, channels and dtype."""
    encoder = {k: v for k, v in attributes["encoder"].items() if k not in NOT_RECIPE}
    return {
        "encoder": encoder,
        **{name: attributes[name] for name in ("kind", "channels", "dtype")},
    }


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Hex sha256 of a recipe's canonical JSON: names sorted, no white space, UTF-8."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def recipe_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ, by dotted name: the pair of values, None where one has no such field.

    >>> recipe_differences({"resize": {"shorter": 600}}, {"resize": {"shorter": 448}})
    {'resize.shorter': (600, 448)}
    """
    ours, theirs = dict(_fields(first)), dict(_fields(second))
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or not _equal(ours[name], theirs[name])
    }


def differences_text(differences: Mapping[str, Any], most: int = 8) -> str:
    """The first differences in one line, "resize.shorter: 600 and 448", and how many more."""
    shown = [
        f"{name}: {one!r} and {two!r}" for name, (one, two) in list(differences.items())[:most]
    ]
    more = f"; and {len(differences) - most} more" if len(differences) > most else ""
    return "; ".join(shown) + more


def _equal(one: Any, other: Any) -> bool:
    # JSON keeps true apart from 1, which Python does not; and tuples come back as lists
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
