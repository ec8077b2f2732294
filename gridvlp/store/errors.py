"""What can be wrong: with the store or its disk (stop), or with one map (skip it and count it)."""

from __future__ import annotations

from gridvlp.errors import UserError


class StoreError(UserError):
    """A store that cannot be used as asked; the message says which and why.

    Where it is one of the kinds below that name a map, other maps may be fine; otherwise the store
    or the disk is at fault, and going on is of no use.
    """


class MapError(StoreError):
    """This map cannot be added; the store is as it was and takes the next one."""


class DuplicateKey(MapError):
    """The store has a map of that photo already."""


class DamagedMap(StoreError):
    """The stored bytes of a map are not those that were written."""


class StoreUnreachable(StoreError):
    """The store cannot be read now; what it holds may well be whole."""


class StoreRefused(StoreUnreachable):
    """A server that does not let us read a file, or does not want to say that it is missing."""
