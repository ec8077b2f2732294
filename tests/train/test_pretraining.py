import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from gridvlp.errors import UserError
from gridvlp.run.devices import choose_device, choose_precision
from gridvlp.store import FeatureStore
from gridvlp.train import pretraining
from gridvlp.train.corpus.corpus import Corpus
from gridvlp.train.pretraining import NO_ANSWER, PreTrainingBatches, pretrain
from gridvlp.train.tokenization import Encoder, train_tokenizer


class Cut(BaseException):
    """Stands in for a kill: nothing catches it."""


def silent(_line):
    pass


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def corpus(squares):
    return Corpus.build(squares / "data", FeatureStore(squares / "store.zarr"), cache=squares / "c")


@pytest.fixture(scope="module")
def make(squares, corpus):
    store = FeatureStore(squares / "store.zarr")
    tokenizer = train_tokenizer(lambda: map(corpus.sentence, range(len(corpus))))

    def build(**changes):
        settings = {"batch_size": 16, "grids": 4, "sentences_per_read": 2, "seed": 0, **changes}
        return PreTrainingBatches(corpus, store, Encoder(tokenizer), **settings)

    return build


def test_groups_of_an_image_stay_together_and_share_one_read(make):
    batch = make(sentences_per_read=5)(0)[0]
    assert len(batch.keys) == len(set(batch.keys)) < 8
    assert batch.inputs["grids_IGC"].shape == (len(batch.keys), 4, 8)
    assert int(batch.inputs["image_index_B"].max()) == len(batch.keys) - 1


def test_a_batch_is_a_function_of_seed_and_step(make):
    one, other = make()(3)[0], make()(3)[0]
    for name, tensor in one.inputs.items():
        assert tensor.equal(other.inputs[name]), name
    assert one.masked_words_M.equal(other.masked_words_M)
    assert not one.inputs["grids_IGC"].equal(make()(4)[0].inputs["grids_IGC"])


def test_micro_batches_and_processes_divide_the_same_batch(make):
    whole = make()(2)[0]
    parts = [
        batch for process in (0, 1) for batch in make(process=process, processes=2, accumulate=2)(2)
    ]
    assert [len(part.matched_B) for part in parts] == [4] * 4
    assert [m for part in parts for m in part.matched_B.tolist()] == whole.matched_B.tolist()
    assert [a for part in parts for a in part.answer_B.tolist()] == whole.answer_B.tolist()
    assert [
        w for part in parts for w in part.masked_words_M.tolist()
    ] == whole.masked_words_M.tolist()
    grids = dict(zip(whole.keys, whole.inputs["grids_IGC"], strict=True))
    for part in parts:
        for key, grids_GC in zip(part.keys, part.inputs["grids_IGC"], strict=True):
            assert grids_GC.equal(grids[key])


def test_masking_and_mismatching_follow_bert_and_lxmert(make, corpus):
    batches = make(batch_size=160)
    tokenizer = batches.encoder.tokenizer
    words = masked = kept = hidden = matched = answered = total = 0
    for step in range(60):
        batch = batches(step)[0]
        ids_BL = batch.inputs["input_ids_BL"]
        now = ids_BL.reshape(-1)[batch.masked_positions_M]
        special = np.isin(
            ids_BL.numpy(), [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
        )
        words += int((~special).sum())
        masked += len(now)
        hidden += int((now == tokenizer.mask_token_id).sum())
        kept += int((now == batch.masked_words_M).sum())
        matched += int(batch.matched_B.sum())
        total += len(batch.matched_B)
        answered += int((batch.answer_B != NO_ANSWER).sum())
        assert not ((batch.answer_B != NO_ANSWER) & (batch.matched_B == 0)).any()
    assert masked / words == pytest.approx(0.15, abs=0.01)
    assert hidden / masked == pytest.approx(0.8, abs=0.03)
    assert kept / masked == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.03)
    assert matched / total == pytest.approx(0.5 + 0.5 / corpus.images, abs=0.02)
    share = sum(len(corpus.answers_of(i)[0]) > 0 for i in range(len(corpus))) / len(corpus)
    assert answered / total == pytest.approx(share * matched / total, abs=0.03)


def test_an_answer_is_drawn_by_its_score(tmp_path, squares):
    """LXMERT's: where people disagree, an answer is asked for as often as its score says."""
    from tests.squares import write_data

    data = tmp_path / "data"
    write_data(data)
    path = data / "vqa" / "v2_mscoco_train2014_annotations.json"
    about = json.loads(path.read_text())
    for question in about["annotations"]:
        for answer, name in zip(
            question["answers"], ["green"] + 2 * ["blue"] + 7 * ["red"], strict=True
        ):
            answer["answer"] = name
    path.write_text(json.dumps(about))
    store = FeatureStore(squares / "store.zarr")
    corpus = Corpus.build(data, store, sources=("vqa",), cache=tmp_path / "cache")
    tokenizer = train_tokenizer(lambda: map(corpus.sentence, range(len(corpus))))
    batches = PreTrainingBatches(
        *(corpus, store, Encoder(tokenizer)), batch_size=64, grids=4, sentences_per_read=1, seed=0
    )
    asked = np.concatenate([batches(step)[0].answer_B.numpy() for step in range(40)])
    asked = asked[asked != NO_ANSWER]
    ids, scores = corpus.answers_of(0)
    assert len(set(np.round(scores, 3))) == 3
    for answer, score in zip(ids, scores, strict=True):
        assert (asked == answer).mean() == pytest.approx(score / scores.sum(), abs=0.04)


def test_it_learns_and_says_what_it_trained_on(options, capsys):
    told = []
    figures = pretrain(replace(options, training=replace(options.training, epochs=20)), told.append)
    logged = [line["loss"] for line in lines(options.run) if "loss" in line]
    assert logged[-1] < 0.6 * logged[0]
    assert figures["held_out/qa"] > 75
    text = "\n".join(told)
    assert "coco-captions" in text
    assert "Leakage guard: 16 images" in text
    record = json.loads((options.run / "run.json").read_text())
    assert record["options"]["grids"] == 4
    assert record["environment"]["versions"]["torch"]
    assert record["facts"]["encoder"]["name"] == "squares"


def test_the_precision_that_auto_means_is_recorded_and_an_older_record_goes_on(options):
    options = replace(options, training=replace(options.training, precision="auto", epochs=1))
    pretrain(options, silent)
    record = options.run / "run.json"
    chosen = json.loads(record.read_text())["options"]["precision"]
    assert chosen == str(choose_precision("auto", choose_device())).removeprefix("torch.")
    record.write_text(record.read_text().replace(f'"{chosen}"', '"auto"'))
    for precision in ("auto", chosen):
        again = replace(options, training=replace(options.training, precision=precision))
        assert pretrain(again, silent)["step"] == 10


def test_a_killed_and_resumed_run_is_the_undisturbed_one(options, monkeypatch):
    undisturbed = pretrain(options, silent)
    broken = replace(options, run=options.run.with_name("broken"))
    made = pretraining.PreTrainingBatches.__call__
    for kill_at in (3, 9, 14):

        def call(self, step, kill_at=kill_at):
            if step == kill_at:
                raise Cut
            return made(self, step)

        monkeypatch.setattr(pretraining.PreTrainingBatches, "__call__", call)
        with pytest.raises(Cut):
            pretrain(broken, silent)
    monkeypatch.setattr(pretraining.PreTrainingBatches, "__call__", made)
    assert pretrain(broken, silent) == undisturbed
    assert lines(broken.run) == lines(options.run)
    for name, tensor in weights(options.run).items():
        assert tensor.equal(weights(broken.run)[name]), name
    assert pretrain(broken, silent)["step"] == undisturbed["step"]


def test_accumulation_gives_the_large_batchs_result(options):
    plain = replace(options, dropout=0.0)
    pretrain(plain, silent)
    split = replace(
        plain,
        run=options.run.with_name("split"),
        training=replace(options.training, accumulate=4),
    )
    pretrain(split, silent)
    for one, other in zip(lines(plain.run), lines(split.run), strict=True):
        assert one.keys() == other.keys()
        assert one["step"] == other["step"]
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_other_options_or_another_process_do_not_touch_a_run(options):
    pretrain(options, silent)
    other = replace(options, training=replace(options.training, learning_rate=1e-5))
    with pytest.raises(UserError, match=r"learning_rate was 0\.002, is 1e-05"):
        pretrain(other, silent)


def test_a_loss_that_is_not_finite_stops_with_the_images_named(options, monkeypatch):
    def broken(model, batch):
        return {
            name: (value * float("nan"), n) for name, (value, n) in original(model, batch).items()
        }

    original = pretraining.losses
    monkeypatch.setattr(pretraining, "losses", broken)
    with pytest.raises(UserError, match=r"not finite at step 1 .*images of the batch: 0000000"):
        pretrain(options, silent)


def test_a_corpus_without_a_photo_in_the_store_says_what_to_extract(options, tmp_path):
    from tests.squares import write_data

    write_data(tmp_path / "data")
    for path in (tmp_path / "data" / "coco").rglob("*.json"):
        path.write_text(path.read_text().replace('"image_id": ', '"image_id": 9'))
    with pytest.raises(UserError, match="gridvlp extract --images"):
        pretrain(replace(options, data=tmp_path / "data", sources=("coco-captions",)), silent)
