"""The order of an epoch's sentences: shuffled, with groups of one image's sentences kept together.

Kept as one shuffled number per group, so that an epoch of 9.18M sentences costs some megabytes and
a fraction of a second; which sentences a group holds is worked out when a batch asks for them.
"""

from __future__ import annotations

import threading

import numpy as np


class EpochOrder:
    """Deals the sentences of each image in random groups, and all groups in random order.

    The groups of an image divide a random permutation of its sentences; both permutations are
    drawn anew each epoch, from (seed, epoch) and the image. May be called from several threads.

    Args:
        offsets: int64 (images + 1,), as ``Corpus.offsets``: sentences offsets[i] to
            offsets[i + 1] - 1 are those of image i.
        group_size: sentences of an image that stay together.
        seed: what the orders are drawn from.
    """

    def __init__(self, offsets: np.ndarray, group_size: int, seed: int) -> None:
        self.offsets, self.group_size, self.seed = offsets, group_size, seed
        groups_I = -(-np.diff(offsets) // group_size)
        self._first_group_I = np.concatenate([[0], np.cumsum(groups_I)])
        self._lock = threading.Lock()
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def sentences(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Sentence numbers (int64) at the places ``first`` to ``last`` - 1 of an epoch's order.

        Places behind the epoch's end count on from its beginning.
        """
        group_G, ends_G = self._shuffled(epoch)
        total = int(ends_G[-1])
        parts, place = [], first
        while place < last:
            within = place % total
            at = int(np.searchsorted(ends_G, within, side="right"))
            dealt = self._deal(epoch, int(group_G[at]))
            skipped = within - (int(ends_G[at]) - len(dealt))
            parts.append(dealt[skipped : skipped + last - place])
            place += len(parts[-1])
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups in an epoch's order (int32), and the place behind each group's end (int64)."""
        with self._lock:  # a second thread waits for the order instead of making it again
            if epoch not in self._epochs:
                first_I, size = self._first_group_I, self.group_size
                group_G = np.arange(first_I[-1], dtype=np.int32)
                np.random.default_rng([self.seed, 1, epoch]).shuffle(group_G)
                sizes_G = np.full(len(group_G), size, dtype=np.int64)
                sizes_G[first_I[1:] - 1] = np.diff(self.offsets) - size * (np.diff(first_I) - 1)
                if len(self._epochs) > 1:  # this epoch and the one that is ending
                    self._epochs.pop(min(self._epochs))
                self._epochs[epoch] = group_G, np.cumsum(sizes_G[group_G])
            return self._epochs[epoch]

    def _deal(self, epoch: int, group: int) -> np.ndarray:
        """The sentences of a group."""
        image = int(np.searchsorted(self._first_group_I, group, side="right")) - 1
        first, end = int(self.offsets[image]), int(self.offsets[image + 1])
        if self.group_size == 1 or end - first == 1:
            return np.array([first + group - int(self._first_group_I[image])])
        shuffled = np.random.default_rng([self.seed, 5, epoch, image]).permutation(end - first)
        begin = (group - int(self._first_group_I[image])) * self.group_size
        return first + shuffled[begin : begin + self.group_size]
