import json

import numpy as np
import pytest
from transformers import BertTokenizer

from gridvlp.errors import UserError
from gridvlp.train import tokenization
from gridvlp.train.corpus.corpus import Corpus
from gridvlp.train.tokenization import (
    Encoder,
    corpus_tokenizer,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
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
    cut, unknown = encoder.check(sentences.__getitem__, 50)
    assert cut == "Cut at 20 tokens: 5 of 50 sentences."
    assert unknown == "[UNK]: 0 of 225 word pieces in 50 sentences."
    monkeypatch.setattr(tokenization, "LOOKED_AT", 25)
    assert encoder.check(sentences.__getitem__, 50)[0] == (
        "Cut at 20 tokens: 5 of 25 sampled sentences."
    )
    assert len(encoder.check(lambda number: "a red cube", 3)) == 1


def test_unknown_words_are_counted_and_many_of_them_are_named():
    encoder = Encoder(train_tokenizer(lambda: SENTENCES))
    (line,) = encoder.check(["the red cube", "Der rote Würfel", "☃"].__getitem__, 3)
    assert line == (
        "[UNK]: 2 of 12 word pieces in 3 sentences (16.7%), most often 'Würfel', '☃': is this "
        "the vocabulary of their language and case?"
    )
    few = ["the red cube"] * 200 + ["the ☃"]
    assert encoder.check(few.__getitem__, 201) == ["[UNK]: 1 of 602 word pieces in 201 sentences."]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "a", "red", "ball", "the", "cube", "##s", "[", "]"]


def write_vocabulary(folder, pieces, **settings):
    """A folder in the transformers layout."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "odd",
    ["\u2028", "\x85", "\x0b", "\x1c", "\u2029", "red", "\u200b"],
    ids=["U+2028", "U+0085", "VT", "FS", "U+2029", "twice", "U+200B"],
)
def test_every_line_is_an_id_as_in_transformers_own_reader(tmp_path, odd):
    pieces = [*PIECES[:5], odd, *PIECES[5:]]
    folder = write_vocabulary(tmp_path / "bert", pieces, do_lower_case=True)
    sentences = ["the red balls", "a cube"]
    theirs = BertTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="np")
    for source in (folder, folder / "vocab.txt"):
        tokenizer = load_tokenizer(source)
        ids_BL, _, _ = Encoder(tokenizer).encode(sentences)
        np.testing.assert_array_equal(ids_BL, theirs["input_ids"])
        assert ids_BL[0].tolist() == [2, 9, 7, 8, 11, 3]
        assert vocabulary_size(tokenizer) == Encoder(tokenizer).size == len(pieces)
        tokenizer.save_pretrained(tmp_path / "saved")
        ids_BL, _, _ = Encoder(load_tokenizer(tmp_path / "saved")).encode(sentences)
        np.testing.assert_array_equal(ids_BL, theirs["input_ids"])


def test_what_is_odd_about_a_vocabulary_is_told_with_its_lines(tmp_path):
    told = []
    folder = write_vocabulary(tmp_path / "bert", [*SPECIAL, "red", "", "red"])
    tokenizer = load_tokenizer(folder, told.append)
    assert told == [
        f"{folder / 'vocab.txt'}, line 7: empty; id 6 is no piece.",
        f"{folder / 'vocab.txt'}: 'red' is on lines 6 and 8; its id is 7, and id 5 is not used.",
        f"Vocabulary: {folder}, 6 pieces, lower-cased.",
    ]
    assert tokenizer.convert_tokens_to_ids("red") == 7
    assert vocabulary_size(tokenizer) == 8


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + "\n".join(PIECES),
        "\r\n".join(PIECES) + "\r\n",
        "\ufeff" + "\r\n".join(PIECES) + "\r\n\r\n",
        " \n".join(PIECES),
    ],
    ids=["byte-order mark", "Windows", "both", "spaces"],
)
def test_a_vocabulary_saved_by_another_system_is_the_same(tmp_path, content):
    path = tmp_path / "words.txt"
    path.write_bytes(content.encode())
    assert load_tokenizer(path).get_vocab() == {piece: id for id, piece in enumerate(PIECES)}


@pytest.mark.parametrize(
    ("more", "settings", "cased"),
    [
        (["Red"], {}, True),
        (["##CDs", "cds"], {}, True),
        (["Été"], {}, True),
        (["<S>", "[unused1]", "X", "##Y", "café", "中文"], {}, False),  # as in Chinese BERT
        ([], {}, False),
        (["Red"], {"do_lower_case": True}, False),
        ([], {"do_lower_case": False}, True),
    ],
)
def test_a_vocabulary_with_capitals_is_cased_unless_its_settings_say_else(
    tmp_path, more, settings, cased
):
    folder = write_vocabulary(tmp_path / "bert", [*PIECES, *more], **settings)
    for source in (folder, folder / "vocab.txt"):
        told = []
        tokenizer = load_tokenizer(source, told.append)
        assert told[-1].endswith("cased." if cased else "lower-cased.")
        assert ("lower-cased" in told[-1]) != cased
        assert tokenizer.tokenize("RED")[:1] == (["[UNK]"] if cased else ["red"])
        tokenizer.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "tokenizer_config.json").unlink()  # tokenizer.json says it, too
        assert load_tokenizer(tmp_path / "saved").do_lower_case is not cased


def test_accents_go_with_capitals_as_in_bert(tmp_path):
    cased = load_tokenizer(write_vocabulary(tmp_path / "a", [*PIECES, "Café", "cafe"]))
    lower = load_tokenizer(write_vocabulary(tmp_path / "b", [*PIECES, "café", "cafe"]))
    assert cased.tokenize("Café") == ["Café"]
    assert lower.tokenize("Café") == ["cafe"]


@pytest.mark.parametrize("typed", ["[MASK]", "[SEP] red", "[CLS]", "[PAD] a [PAD]", "[UNK]"])
def test_a_special_token_in_a_sentence_is_plain_text(tmp_path, typed):
    pieces = [
        *PIECES,
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        *"bcdefghijklmnopqrstuvwxyz",
    ]
    path = write_vocabulary(tmp_path / "bert", pieces)
    for tokenizer in (load_tokenizer(path), train_tokenizer(lambda: [*SENTENCES, *pieces * 2])):
        ids_BL, mask_BL, _ = Encoder(tokenizer).encode([typed])
        tokens = tokenizer.convert_ids_to_tokens(ids_BL[0][mask_BL[0]])
        assert tokens[0] == "[CLS]"
        assert tokens[-1] == "[SEP]"
        assert not set(tokens[1:-1]) & set(SPECIAL)
        assert tokens[1] == "["


def test_a_vocab_file_is_read_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncube\n")
    assert load_tokenizer(path).convert_tokens_to_ids("cube") == 5
    for words in ("cube\nball\n", ""):
        path.write_text(words)
        for source in (path, tmp_path):
            with pytest.raises(UserError, match=r"lacks .*\[PAD\].*: it is not a BERT's"):
                load_tokenizer(source)
    path.write_bytes("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncafé".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="holds no BERT vocabulary"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no BERT vocabulary"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "does not hold an object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}}', "of the kind BPE"),
        ('{"model": {"vocab": {"a": 0, "b": 0}}}', "two pieces have one id"),
        ('{"model": {"vocab": {"a": "0"}}}', "an id is not a whole number"),
        ('{"model": {"vocab": {"a": 0}}}', "cannot be read|lacks"),
        ('{"model": null}', "cannot be read"),
    ],
)
def test_a_saved_tokenizer_of_another_kind_is_refused(tmp_path, text, why):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=why):
        load_tokenizer(tmp_path)


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
