"""Two machines that share no disk: each process has a run's folder of its own."""

import json
import re
import time
from collections import Counter
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from gridvlp.errors import UserError
from gridvlp.train import loop as training
from gridvlp.train import pretraining, tokenization
from gridvlp.train.corpus import cache as corpus_cache
from gridvlp.train.pretraining import pretrain
from tests.squares import write_data
from tests.train.test_endurance import losses, silent
from tests.train.test_interrupts import struck
from tests.train.two_processes import run_together


def train(options):
    """Train; what this process ends with: figures or error, weights and average."""
    seen = []
    start = training._Training.start

    def watched(self, head):
        start(self, head)
        seen.append(self)

    with mock.patch.object(training._Training, "start", watched):
        try:
            figures = pretrain(options, silent)
        except UserError as error:
            return {"error": str(error)}
    if not seen:
        return {"figures": figures}
    return {
        "figures": figures,
        "weights": {name: p.detach() for name, p in seen[0].model.named_parameters()},
        "average": seen[0].average.averages,
    }


def counting(where, name, counted):
    original = getattr(where, name)

    def count(*arguments):
        counted[name] += 1
        time.sleep(1)  # in which the other process would come
        return original(*arguments)

    return mock.patch.object(where, name, count)


def of_its_own(options, name, rank):
    return replace(options, run=options.run / f"{name}-{rank}")


def train_all(rank, options):
    """Everything that is tried on two processes, which are started once."""
    other = replace(
        of_its_own(options, "other", rank),
        training=replace(options.training, learning_rate=1e-3 * (1 + rank)),
    )
    data = replace(of_its_own(options, "data", rank), sources=options.sources[: 1 + rank])
    fresh = replace(
        of_its_own(options, "fresh", 0), data=options.run / "fresh", layers=1, hidden_size=8
    )
    fresh = replace(fresh, training=replace(options.training, epochs=1, batch_size=80))
    counted = Counter()
    with (
        counting(corpus_cache, "_write", counted),
        counting(tokenization, "train_tokenizer", counted),
    ):
        train(fresh)
    return {
        "made": counted,
        "resumed": train(of_its_own(options, "resumed", rank)),
        "finished": train(of_its_own(options, "resumed", rank)),
        "options": train(other),
        "data": train(data),
    }


@pytest.fixture(scope="module")
def outcome(squares, tmp_path_factory):
    from gridvlp.train.options import PreTrainingOptions, TrainingSettings

    folder = tmp_path_factory.mktemp("agree")
    options = PreTrainingOptions(
        features=(squares / "store.zarr",),
        data=squares / "data",
        run=folder,
        grids=4,
        hidden_size=32,
        layers=2,
        heads=2,
        dropout=0.0,
        initializer_range=0.1,
        training=TrainingSettings(2e-3, 3, 16, 0.1, precision="float32", ema=0.9),
    )
    pretrain(replace(options, run=folder / "undisturbed"), silent)
    with struck(pretraining, "losses", 13), pytest.raises(KeyboardInterrupt):
        pretrain(of_its_own(options, "resumed", 0), silent)
    (folder / "returned").mkdir()
    write_data(folder / "fresh")
    return folder, run_together(train_all, folder / "returned", options)


def test_a_run_resumes_in_all_from_the_first_ones_checkpoint_and_as_one_process(outcome):
    folder, (first, second) = outcome
    assert losses(folder / "resumed-0") == pytest.approx(losses(folder / "undisturbed"), rel=2e-3)
    assert not (folder / "resumed-1").exists()  # the first alone writes
    for kind in ("weights", "average"):
        for name, tensor in first["resumed"][kind].items():
            assert tensor.equal(second["resumed"][kind][name]), (kind, name)
    mean = load_file(folder / "undisturbed" / "model" / "model.safetensors")
    for name, tensor in first["resumed"]["average"].items():
        torch.testing.assert_close(tensor, mean[name], atol=1e-3, rtol=1e-2, msg=name)
    assert first["resumed"]["figures"] == second["resumed"]["figures"]
    state = json.loads((folder / "resumed-0" / "checkpoint" / "state.json").read_text())
    assert state["step"] == 30


def test_the_first_alone_reads_the_corpus_and_learns_word_pieces(outcome):
    _, (first, second) = outcome
    assert first["made"] == {"_write": 1, "train_tokenizer": 1}
    assert second["made"] == {}


def test_a_run_that_is_finished_in_the_first_is_finished_in_all(outcome):
    _, (first, second) = outcome
    assert first["finished"]["figures"] == second["finished"]["figures"]
    assert "weights" not in second["finished"]
    assert first["finished"]["figures"]["step"] == 30


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("options", r"learning_rate is 0\.001 in process 0 and 0\.002 in process 1\. Give all"),
        ("data", r"corpus is .* in process 0 and .* in process 1"),
    ],
)
def test_processes_that_would_train_on_other_things_are_refused(outcome, what, told):
    for result in outcome[1]:
        assert re.search(told, result[what]["error"])
