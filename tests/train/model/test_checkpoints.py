"""Where a model may start from: nothing, a plain BERT, a pre-trained or a fine-tuned run."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from gridvlp.errors import UserError
from gridvlp.store import FeatureStore
from gridvlp.train.finetuning import finetune
from gridvlp.train.model.checkpoints import load_config, start_pretraining, start_task
from gridvlp.train.model.fusion import TASK_MODELS, GridVLPForPairs, GridVLPForPreTraining
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from gridvlp.train.tokenization import train_tokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture
def store(squares):
    return FeatureStore(squares / "store.zarr")


@pytest.fixture
def bert(tmp_path):
    """A plain BERT with its masked-word head and its vocabulary, as one is downloaded."""
    tokenizer = train_tokenizer(lambda: ["what color is the square", "is the square red or blue"])
    torch.manual_seed(1)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZES))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", model


def test_a_plain_berts_weights_and_word_head_are_taken(bert, store):
    folder, theirs = bert
    told = []
    model, fresh = start_pretraining(
        folder, store, theirs.config.vocab_size, ["yes", "no"], told.append
    )
    assert "bert.grid_projection.weight" in fresh
    assert "matching.weight" in fresh
    assert not any(key.startswith(("bert.embeddings", "bert.encoder", "cls.")) for key in fresh)
    for name in (
        "cls.predictions.bias",
        "bert.encoder.layer.1.output.dense.bias",
    ):
        assert model.get_parameter(name).equal(theirs.get_parameter(name)), name
    assert model.config.grid_channels == store.channels


def test_a_bert_without_a_head_will_do_and_a_larger_vocabulary_will_not(bert, store, tmp_path):
    folder, theirs = bert
    BertModel(theirs.config).save_pretrained(tmp_path / "bare")
    _, fresh = start_pretraining(tmp_path / "bare", store, 10, ["yes"], print)
    assert "cls.predictions.bias" in fresh
    assert not any(key.startswith("bert.encoder") for key in fresh)
    with pytest.raises(UserError, match=r"has 9,999 pieces"):
        start_pretraining(folder, store, 9_999, ["yes"], print)
    with pytest.raises(UserError, match="holds no model"):
        load_config(tmp_path / "nothing")


def test_a_task_starts_from_a_plain_bert_too(bert, squares, task_training, tmp_path):
    folder, _ = bert
    told = []
    finetune(
        FineTuningOptions(
            "vqa",
            (squares / "store.zarr",),
            task_training("vqa", epochs=1),
            data=squares / "data",
            init=folder,
            run=tmp_path / "vqa",
        ),
        told.append,
    )
    assert any("answer head from scratch" in line for line in told)
    assert any("From scratch, too: grid_projection.bias" in line for line in told)


def test_pre_training_goes_on_from_a_run_with_other_answers(options, tmp_path):
    short = replace(options, training=replace(options.training, epochs=1))
    pretrain(short, lambda line: None)
    answers = tmp_path / "answers.json"
    answers.write_text('["blue", "purple", "no"]')
    told = []
    again = replace(short, init=str(options.run / "model"), run=tmp_path / "again", answers=answers)
    pretrain(again, told.append)
    assert any("2 of 3 answers start from their row" in line for line in told)
    assert any("fresh: nothing" in line for line in told)


@pytest.mark.parametrize("head", ["pair", "triplet", "pair-attention"])
def test_each_head_of_nlvr2_starts_from_pre_training_and_goes_on_from_itself(head, store, tmp_path):
    config = load_config_of(store)
    pretrained = GridVLPForPreTraining(config)
    pretrained.save_pretrained(tmp_path / "pre")
    modalities = 3 if head == "triplet" else 2
    start = (TASK_MODELS[head], store, ["False", "True"], modalities, False)
    told = []
    model = start_task(start[0], tmp_path / "pre", *start[1:], told.append)
    name = "encoder.layer.0.output.dense.weight"
    assert model.bert.get_parameter(name).equal(pretrained.bert.get_parameter(name))
    assert len(model.bert.embeddings.token_type_embeddings.weight) == modalities
    model.save_pretrained(tmp_path / "own")
    again = start_task(start[0], tmp_path / "own", *start[1:], told.append)
    for (key, one), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert one.equal(other), key
    if head != "pair":  # a head of another kind is not mistaken for one's own
        other = start_task(
            GridVLPForPairs, tmp_path / "own", store, ["False", "True"], 2, False, print
        )
        assert other.bert.get_parameter(name).equal(pretrained.bert.get_parameter(name))


def load_config_of(store):
    from gridvlp.train.model.fusion import GridVLPConfig

    return GridVLPConfig(
        vocab_size=40,
        **SIZES,
        grid_channels=store.channels,
        grid_recipe=store.recipe,
        answers=["yes", "no"],
    )
