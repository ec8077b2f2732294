import numpy as np
import pytest
from transformers import BertTokenizer

from gridvlp.errors import UserError
from gridvlp.train import tokenization
from gridvlp.train.corpora import Corpus
from gridvlp.train.tokenization import (
    Encoder,
    corpus_tokenizer,
    load_tokenizer,
    train_tokenizer,
)

SENTENCES = ["a red cube and a ball", "is the ball red ?", "the cube is on the ball"] * 3


def test_a_learned_vocabulary_is_the_same_every_time_and_survives_saving(tmp_path):
    one, other = train_tokenizer(lambda: SENTENCES), train_tokenizer(lambda: SENTENCES)
    assert one.get_vocab() == other.get_vocab()
    assert one.tokenize("The red cube") == ["the", "red", "cube"]
    one.save_pretrained(tmp_path)
    back = load_tokenizer(tmp_path)
    assert back.get_vocab() == one.get_vocab()
    ids, _, _ = Encoder(back).encode(["the red cube"])
    assert back.convert_ids_to_tokens(ids[0]) == ["[CLS]", "the", "red", "cube", "[SEP]"]


def test_encoding_equals_transformers_own_and_cuts_are_counted():
    tokenizer = train_tokenizer(lambda: SENTENCES)
    given = ["a red cube", "is the ball red ?", "the " * 50, "", "立方体 ☃ ''"]
    ids_BL, mask_BL, truncated = Encoder(tokenizer, max_tokens=20).encode(given)
    theirs = BertTokenizer(vocab=tokenizer.get_vocab())(
        given, truncation=True, max_length=20, padding=True, return_tensors="np"
    )
    assert truncated == 1
    np.testing.assert_array_equal(ids_BL, theirs["input_ids"])
    np.testing.assert_array_equal(mask_BL, theirs["attention_mask"].astype(bool))


def test_long_sentences_are_counted_from_all_or_a_sample(monkeypatch):
    encoder = Encoder(train_tokenizer(lambda: SENTENCES))
    sentences = ["the " * (10_000 if number % 10 == 0 else 3) for number in range(50)]
    assert encoder.cut(sentences.__getitem__, 50) == "Cut at 20 tokens: 5 of 50 sentences."
    monkeypatch.setattr(tokenization, "LOOKED_AT", 25)
    told = encoder.cut(sentences.__getitem__, 50)
    assert told == "Cut at 20 tokens: 5 of 25 sampled sentences."
    assert encoder.cut(lambda number: "a red cube", 3) is None


def test_a_vocab_file_is_read_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncube\n")
    assert load_tokenizer(path).convert_tokens_to_ids("cube") == 5
    path.write_text("cube\nball\n")
    with pytest.raises(UserError, match=r"lacks \[PAD\]"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="holds no BERT vocabulary"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no BERT vocabulary"):
        load_tokenizer(tmp_path / "empty")


def test_the_published_vocabulary_loads(shared_data):
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    ids_BL, _, _ = Encoder(tokenizer).encode(["a photo of two cats"])
    assert ids_BL.tolist() == [[101, 1037, 6302, 1997, 2048, 8870, 102]]


def test_a_corpus_is_learned_from_once(squares, tmp_path, monkeypatch):
    def build(photos=None):
        return Corpus.build(squares / "data", photos, cache=tmp_path)

    corpus = build()
    expected = train_tokenizer(lambda: map(corpus.sentence, range(len(corpus)))).get_vocab()
    assert corpus_tokenizer(corpus).get_vocab() == expected
    calls = []
    learn = tokenization.train_tokenizer
    monkeypatch.setattr(tokenization, "train_tokenizer", lambda s: calls.append(1) or learn(s))
    assert corpus_tokenizer(build()).get_vocab() == expected
    assert not calls
    corpus_tokenizer(build([f"{1:012}"]))  # other photos, other sentences
    assert calls == [1]
