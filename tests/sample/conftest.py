"""A small sample world for all tests of the room."""

import json

import pytest

from gridvlp.sample import write_sample


@pytest.fixture(scope="session")
def summary_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_sample(folder, images=200, seed=3), folder / "data"


@pytest.fixture(scope="session")
def data(summary_and_data):
    return summary_and_data[1]


@pytest.fixture(scope="session")
def load(data):
    """Reads an annotation file of the world, once."""
    read = {}

    def load(name):
        if name not in read:
            text = (data / name).read_text()
            lines = name.startswith("nlvr2/")
            read[name] = [json.loads(x) for x in text.splitlines()] if lines else json.loads(text)
        return read[name]

    return load
