import itertools

import torch

from gridvlp.run.seeding import seed_step


def draw(*numbers):
    seed_step(*numbers)
    return tuple(torch.rand(4).tolist())


def test_every_seed_step_and_process_has_numbers_of_its_own():
    """A CPU's generator looks at 32 bits alone: shifted numbers meet there."""
    processes = (0, 1, 63, 64, 65, 128, 4096)
    steps = (0, 1, 2, 64, 1 << 20, 1 << 26)
    seeds = (0, 1, 2, 1 << 16)
    every = list(itertools.product(seeds, steps, processes))
    assert len({draw(*numbers) for numbers in every}) == len(every)


def test_the_same_numbers_come_again():
    assert draw(3, 1000, 70) == draw(3, 1000, 70)
    assert draw(3, 1000) == draw(3, 1000, 0)
