import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.train.corpus.order import EpochOrder


def whole(order, epoch):
    return order.sentences(epoch, 0, int(order.offsets[-1]))


counts = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def offsets_of(counts):
    return np.concatenate([[0], np.cumsum(counts)])


@given(counts, st.integers(1, 9), st.integers(0, 3))
def test_every_sentence_comes_once_and_groups_stay_together(counts, size, seed):
    offsets = offsets_of(counts)
    order = EpochOrder(offsets, size, seed)
    places = whole(order, 0)
    assert sorted(places) == list(range(offsets[-1]))
    images = np.searchsorted(offsets, places, side="right") - 1
    runs = np.flatnonzero(np.diff(images)).size + 1
    assert runs <= sum(-(-count // size) for count in counts)


@given(counts, st.integers(1, 9), st.integers(0, 40), st.integers(1, 90))
def test_a_batch_is_a_piece_of_the_epoch_and_goes_on_from_its_beginning(counts, size, first, many):
    order = EpochOrder(offsets_of(counts), size, 0)
    expected = whole(order, 2).take(np.arange(first, first + many), mode="wrap")
    assert order.sentences(2, first, first + many).tolist() == expected.tolist()


def test_epochs_and_seeds_differ_and_each_comes_back_the_same():
    offsets = offsets_of([5] * 40)
    order = EpochOrder(offsets, 2, 0)
    epochs = [whole(order, epoch).tolist() for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [whole(order, epoch).tolist() for epoch in range(4)] == epochs
    assert whole(EpochOrder(offsets, 2, 0), 3).tolist() == epochs[3]
    assert whole(EpochOrder(offsets, 2, 1), 0).tolist() != epochs[0]


def test_who_shares_a_group_is_chance():
    """In a permutation of 4 dealt in twos, each of the 3 ways to pair is equally likely."""
    order = EpochOrder(offsets_of([4] * 900), 2, 0)
    places = whole(order, 0).reshape(-1, 2)
    partner_of_first = [int(max(pair)) % 4 for pair in places if int(min(pair)) % 4 == 0]
    shares = np.bincount(partner_of_first, minlength=4)[1:] / len(partner_of_first)
    assert shares == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_one_sentence_at_a_time_is_an_independent_shuffle():
    order = EpochOrder(offsets_of([5] * 200), 1, 0)
    images = whole(order, 0) // 5
    assert np.flatnonzero(np.diff(images)).size > 0.95 * len(images)


def test_threads_share_one_order():
    order, alone = (EpochOrder(offsets_of([7] * 500), 3, 0) for _ in range(2))
    expected = [whole(alone, epoch).tolist() for epoch in (0, 1)]
    found = {}

    def read(number):
        found[number] = whole(order, number % 2).tolist()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == expected[number % 2] for number in range(6))
