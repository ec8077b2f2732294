"""What a checkpoint and files decide of a run: its sizes, and what each row stands for."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from gridvlp.errors import UserError
from gridvlp.train import loop, pretraining
from gridvlp.train.finetuning import finetune
from gridvlp.train.model.checkpoints import load_config
from gridvlp.train.options import FineTuningOptions, PreTrainingOptions
from gridvlp.train.pretraining import pretrain
from gridvlp.train.tokenization import load_tokenizer

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the is square red blue green yellow what color".split()  # noqa: SIM905
SIZES = ("hidden_size", "layers", "heads", "dropout", "initializer_range")


def silent(_line):
    pass


def write_bert(folder, pieces=WORDS):
    """A plain BERT as one is downloaded, with a vocab.txt."""
    torch.manual_seed(1)
    BertForPreTraining(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.3,
            initializer_range=0.05,
        )
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


@pytest.fixture
def bert(tmp_path):
    return write_bert(tmp_path / "bert")


@pytest.fixture
def short(options):
    """An epoch whose sizes are left to the checkpoint."""
    return replace(
        options, training=replace(options.training, epochs=1), **dict.fromkeys(SIZES, None)
    )


def record(run):
    return json.loads((run / "run.json").read_text())


def stop_after_a_step(monkeypatch, run):
    """Call ``run`` until its first step, as Ctrl-C would stop it."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


# --- sizes


def test_the_checkpoints_sizes_are_used_told_and_recorded(short, bert):
    told = []
    pretrain(replace(short, init=str(bert)), told.append)
    expected = dict(zip(SIZES, (16, 1, 4, 0.3, 0.05), strict=True))
    run = record(short.run)
    assert run["facts"]["sizes"] == expected
    assert not expected.keys() & run["options"].keys()
    config = load_config(short.run / "model")
    assert (config.hidden_size, config.hidden_dropout_prob) == (16, 0.3)
    assert f"Vocabulary: {bert}, 15 pieces, lower-cased." in told
    assert any("hidden-size 16, layers 1, heads 4, dropout 0.3" in line for line in told)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 32), ("layers", 2), ("heads", 2), ("initializer_range", 0.02)],
)
def test_another_size_than_the_checkpoints_is_refused(short, bert, name, value):
    named = replace(short, init=str(bert), **{name: value})
    option = name.replace("_", "-")
    with pytest.raises(UserError, match=f"--{option} {value}: the checkpoint .*bert has "):
        pretrain(named, silent)
    same = {"hidden_size": 16, "layers": 1, "heads": 4, "initializer_range": 0.05}[name]
    pretrain(replace(named, **{name: same}), silent)


def test_another_dropout_is_applied_and_belongs_to_the_run(short, bert, monkeypatch):
    named = replace(short, init=str(bert), dropout=0.2)
    stop_after_a_step(monkeypatch, lambda: pretrain(named, silent))
    with pytest.raises(UserError, match=r"data have changed .*\(sizes\)"):
        pretrain(replace(named, dropout=None), silent)
    pretrain(named, silent)
    config = load_config(short.run / "model")
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.2)


def test_pairs_are_shuffled_alone_unless_asked_otherwise(squares):
    assert PreTrainingOptions((squares / "store.zarr",)).sentences_per_read == 1


def test_from_scratch_the_sizes_are_options_as_before(short):
    assert short.identity()["hidden_size"] == 768
    assert replace(short, layers=3).identity()["layers"] == 3
    for wrong in ({"hidden_size": 10, "heads": 4}, {"layers": 0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match="--"):
            replace(short, **wrong)


def test_sizes_of_a_settings_file_give_way_to_a_checkpoint_and_are_told(
    gridvlp, squares, bert, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gridvlp.yaml").write_text("pretrain: {hidden-size: 128, layers: 3, heads: 4}\n")
    command = ("pretrain", "--data", squares / "data", "--features", squares / "store.zarr")
    command += ("--epochs", 1, "--batch-size", 16, "--init", bert)
    code, _, err = gridvlp(*command)
    assert code == 0, err
    assert "hidden-size 128 of the settings file: --init decides." in err
    code, _, err = gridvlp(*command, "--run", "other", "--layers", 3)
    assert code == 2
    assert f"--layers 3: the checkpoint {bert} has 1" in err


# --- rows


@pytest.mark.parametrize("odd", ["\u2028", "red", ""], ids=["U+2028", "twice", "empty line"])
def test_an_odd_vocabulary_moves_no_row_of_a_checkpoint(short, tmp_path, odd):
    pieces = [*WORDS[:5], odd, *WORDS[5:]]
    folder = write_bert(tmp_path / "odd", pieces)
    for number, vocabulary in enumerate((None, folder / "vocab.txt")):
        run = tmp_path / f"run{number}"
        pretrain(replace(short, init=str(folder), vocabulary=vocabulary, run=run), silent)
        tokenizer = load_tokenizer(run / "model")
        ids = tokenizer.convert_tokens_to_ids(["red", "blue", "color"])
        assert ids == [10, 11, 15]
        assert load_config(run / "model").vocab_size == 16
    scratch = replace(short, vocabulary=folder / "vocab.txt", run=tmp_path / "scratch")
    pretrain(replace(scratch, hidden_size=16, layers=1, heads=2), silent)
    assert load_config(scratch.run / "model").vocab_size == 16


def test_a_vocabulary_that_is_not_the_checkpoints_is_refused(short, bert, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(WORDS).encode())
    same = replace(short, init=str(bert), vocabulary=path)
    pretrain(same, silent)
    for pieces, told in (
        ([*WORDS[:-2], "color", "what"], "id 13 is 'color', there 'what'"),
        (WORDS[:-1], "id 14 is None, there 'color'"),
    ):
        path.write_text("\n".join(pieces))
        with pytest.raises(UserError, match=told):
            pretrain(replace(same, run=tmp_path / "other"), silent)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (bert / name).unlink()
    path.write_text("\n".join(WORDS))
    pretrain(replace(same, run=tmp_path / "weights-alone"), silent)


def write_answers(path, names):
    path.write_text(json.dumps(names))
    return path


@pytest.mark.parametrize("changed", ["answers", "vocabulary"])
def test_a_file_whose_rows_changed_is_named_on_resume(options, tmp_path, monkeypatch, changed):
    answers = write_answers(tmp_path / "answers.json", ["red", "blue", "yes", "no"])
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(WORDS))
    options = replace(options, answers=answers, vocabulary=vocabulary)
    stop_after_a_step(monkeypatch, lambda: pretrain(options, silent))
    text = {path: path.read_text() for path in (answers, vocabulary)}
    write_answers(answers, ["blue", "red", "yes", "no"])
    vocabulary.write_text("\n".join([*WORDS[:-2], "color", "what"]))
    unchanged, path = (vocabulary, answers) if changed == "answers" else (answers, vocabulary)
    unchanged.write_text(text[unchanged])
    with pytest.raises(UserError, match=rf"data have changed .*\(.*{changed} from {path}\)"):
        pretrain(options, silent)
    path.write_text(text[path] + "\n")  # the same rows
    assert pretrain(options, silent)["epoch"] == 3


def test_a_run_of_before_without_these_facts_goes_on(options, monkeypatch):
    stop_after_a_step(monkeypatch, lambda: pretrain(options, silent))
    path = options.run / "run.json"
    old = record(options.run)
    for name in ("answers", "vocabulary", "sizes"):
        del old["facts"][name]
    old["options"]["an option of before"] = 3
    path.write_text(json.dumps(old))
    assert pretrain(options, silent)["epoch"] == 3


def test_fine_tuning_notices_another_vocabulary_in_the_pre_trained_folder(
    options, squares, task_training, tmp_path, monkeypatch
):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(WORDS))
    short = replace(options, training=replace(options.training, epochs=1), vocabulary=vocabulary)
    pretrain(short, silent)
    task = FineTuningOptions(
        *("vqa", options.features, task_training("vqa")),
        data=squares / "data",
        init=short.run,
        run=tmp_path / "vqa",
    )
    stop_after_a_step(monkeypatch, lambda: finetune(task, silent))
    saved = short.run / "model" / "tokenizer.json"
    saved.write_text(saved.read_text().replace('"red"', '"der"').replace('"blue"', '"red"'))
    with pytest.raises(UserError, match=rf"\(vocabulary from {short.run}\)"):
        finetune(task, silent)


def test_every_epsilon_is_that_of_lxmerts_adam(options, monkeypatch):
    seen = []
    step = loop._Training._step

    def watched(self, *arguments):
        seen.append(self.optimizer.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(loop._Training, "_step", watched)
    pretrain(options, silent)
    assert {group["eps"] for groups in seen for group in groups} == {1e-6}
    assert pretraining.fit is loop.fit


def test_the_signature_of_a_url_is_not_recorded():
    from gridvlp.train.options import FINE_TUNING, FineTuningOptions, PreTrainingOptions

    places = ("https://host/store.zarr?sig=secret", "s3://bucket/odd?name.zarr", "a/b.zarr")
    expected = ["https://host/store.zarr", "s3://bucket/odd?name.zarr", "a/b.zarr"]
    assert PreTrainingOptions(places).identity()["features"] == expected
    tuning = FineTuningOptions("vqa", places, FINE_TUNING["vqa"])
    assert tuning.identity()["features"] == expected
