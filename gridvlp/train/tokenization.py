"""Sentences to word pieces: any BERT vocabulary, or one trained on the corpus."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer
from transformers.utils import cached_file

from gridvlp.atomic import write_text
from gridvlp.errors import UserError, first_line
from gridvlp.run.progress import track
from gridvlp.train.corpus.corpus import Corpus

MAX_TOKENS = 20  # paper 4.2: the sentence's length, [CLS] and [SEP] included as in LXMERT
BERT_VOCABULARY_SIZE = 30522
LOOKED_AT = 20_000  # sentences, to count those that are cut and unknown words
MAX_ALPHABET = 1000  # as in BERT's WordPiece learner
UNKNOWN_SHARE = 0.01  # of word pieces: above it the vocabulary hardly is that of the sentences
FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(
    source: str | Path, say: Callable[[str], object] = lambda line: None
) -> BertTokenizer:
    """The tokenizer of a vocab.txt, or of a folder or hub name with a vocab.txt or tokenizer.json.

    Whether text is lower-cased is what tokenizer_config.json says, else tokenizer.json, else what
    the pieces are: a vocabulary with capitals is cased. As in BERT, accents go with the capitals.

    Args:
        source: a file, a folder in the transformers layout, or a hub name.
        say: called with a line on the vocabulary, and one on each oddity in it.

    Raises:
        UserError: there is no vocabulary, it cannot be read, or it lacks one of BERT's special
            tokens.
    """
    files = _files(source)
    try:
        about = _read_json(files.get("tokenizer_config.json"))
        saved = _read_json(files.get("tokenizer.json"))
        if saved:
            pieces = _saved_pieces(saved)
        elif "vocab.txt" in files:
            pieces = read_vocabulary(files["vocab.txt"], say)
        else:
            raise UserError(f"{source} holds no BERT vocabulary (vocab.txt, tokenizer.json).")
        normalizer = saved.get("normalizer") or {}
        settings = {
            "do_lower_case": about.get("do_lower_case", normalizer.get("lowercase")),
            "strip_accents": about.get("strip_accents", normalizer.get("strip_accents")),
            "tokenize_chinese_chars": about.get(
                "tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)
            ),
        }
        if settings["do_lower_case"] is None:
            settings["do_lower_case"] = not is_cased(pieces)
        tokenizer = (
            BertTokenizer(vocab=pieces, **settings)
            if Path(source).is_file()
            else BertTokenizer.from_pretrained(str(source), vocab=pieces, **settings)
        )
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"The vocabulary of {source} cannot be read: {first_line(error)}"
        ) from error
    _check_special_tokens(tokenizer, pieces, source)
    case = "lower-cased" if tokenizer.do_lower_case else "cased"
    say(f"Vocabulary: {source}, {len(pieces):,} pieces, {case}.")
    return tokenizer


def read_vocabulary(path: Path, say: Callable[[str], object] = lambda line: None) -> dict[str, int]:
    """The pieces of a vocab.txt with their ids: a piece's id is the number of its line, from 0.

    Lines end at a line feed and nowhere else (bert-base-chinese has U+2028 as a piece). Of a piece
    on two lines the last one counts, as in BERT's own reader and in transformers, and an empty line
    is an id without a piece: no id moves. White space around a piece is no part of it, as there.

    Raises:
        UserError: the file is not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The vocabulary {path} is not UTF-8 text: {error}.") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    pieces: dict[str, int] = {}
    for number, line in enumerate(lines):
        line = line.strip() or line
        if not line:
            say(f"{path}, line {number + 1}: empty; id {number} is no piece.")
        elif line in pieces:
            say(
                f"{path}: {line!r} is on lines {pieces[line] + 1} and {number + 1}; its id is "
                f"{number}, and id {pieces[line]} is not used."
            )
        if line:
            pieces[line] = number
    return pieces


def _check_special_tokens(
    tokenizer: BertTokenizer, pieces: Mapping[str, int], source: object
) -> None:
    # The library numbers special tokens that are missing behind the last piece: rows that no
    # embedding has.
    missing = [token for token in tokenizer.all_special_tokens if token not in pieces]
    if missing:
        raise UserError(f"The vocabulary {source} lacks {', '.join(missing)}: it is not a BERT's.")


def is_cased(pieces: Iterable[str]) -> bool:
    """Whether some word piece has a capital; special tokens and single characters do not count."""
    words = (piece.removeprefix("##") for piece in pieces)
    return any(len(word) > 1 and word.isalpha() and word != word.lower() for word in words)


def vocabulary_size(tokenizer: BertTokenizer) -> int:
    """Rows of the embedding: the largest id + 1; ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_digest(tokenizer: BertTokenizer) -> str:
    """SHA-256 of what each row of the embedding stands for, and of the case."""
    pieces = sorted((id, piece) for piece, id in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([pieces, tokenizer.do_lower_case]).encode()).hexdigest()


def _files(source: str | Path) -> dict[str, Path]:
    """The files of a tokenizer by their names in the transformers layout, those that are there."""
    path = Path(source)
    if path.is_file():
        beside = path.with_name("tokenizer_config.json")
        settings = path.name == "vocab.txt" and beside.is_file()
        return {"vocab.txt": path} | ({beside.name: beside} if settings else {})
    if path.is_dir():
        return {name: path / name for name in FILES if (path / name).is_file()}
    try:
        found = {
            name: cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
            for name in FILES
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} holds no BERT vocabulary (vocab.txt, tokenizer.json): {first_line(error)}"
        ) from error
    return {name: Path(file) for name, file in found.items() if file is not None}


def _read_json(path: Path | None) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8-sig")) if path is not None else {}
    if not isinstance(value, dict):
        raise TypeError(f"{path} does not hold an object")
    return value


def _saved_pieces(saved: dict[str, Any]) -> dict[str, int]:
    """The pieces of a tokenizer.json, those added to the vocabulary included."""
    model = saved["model"]
    if model.get("type", "WordPiece") != "WordPiece":
        raise ValueError(f"it is of the kind {model['type']}, where BERT's is WordPiece.")
    added = {token["content"]: token["id"] for token in saved.get("added_tokens") or ()}
    pieces = {**model["vocab"], **added}
    if not all(type(id) is int and id >= 0 for id in pieces.values()):
        raise ValueError("an id is not a whole number from 0.")
    if len(set(pieces.values())) < len(pieces):
        raise ValueError("two pieces have one id.")
    return pieces


def train_tokenizer(
    sentences: Callable[[], Iterable[str]], size: int = BERT_VOCABULARY_SIZE
) -> BertTokenizer:
    """Learn an uncased WordPiece vocabulary of at most ``size`` pieces.

    Args:
        sentences: makes a pass over the sentences; called twice, so that none need be kept.
        size: the most pieces.
    """
    learner = BertWordPieceTokenizer(lowercase=True)
    characters: Counter[str] = Counter()
    passed = iter(sentences())
    while some := list(islice(passed, 1024)):  # one call for many: a call costs more than its text
        characters.update(learner.normalizer.normalize_str(" ".join(some)))
    alphabet = sorted(c for c, _ in characters.most_common(MAX_ALPHABET) if not c.isspace())
    # The learner numbers pieces in the order of a randomly seeded hash table, and breaks ties by
    # number; naming the alphabet in order beforehand makes its result the same every time.
    learner.train_from_iterator(
        sentences(),
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        limit_alphabet=MAX_ALPHABET,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{c}" for c in alphabet)],
    )
    return BertTokenizer(vocab=learner.get_vocab())


def corpus_tokenizer(corpus: Corpus) -> BertTokenizer:
    """The WordPiece vocabulary of a corpus's sentences: learned once and kept beside its files."""
    path = corpus.folder / f"vocabulary-{corpus.selection[:16]}.txt"
    if path.is_file():
        pieces = read_vocabulary(path)
        tokenizer = BertTokenizer(vocab=pieces)
        _check_special_tokens(tokenizer, pieces, path)
        return tokenizer
    with track("Learning word pieces", 2 * len(corpus), "sentences") as bar:  # two passes

        def sentences() -> Iterator[str]:
            for number, sentence in enumerate(corpus.sentences(), 1):
                yield sentence
                if number % 4096 == 0:
                    bar.advance(4096)

        tokenizer = train_tokenizer(sentences)
        bar.advance(bar.total - bar.done)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    with suppress(OSError):  # a cache that cannot be written costs the next start this time again
        write_text(path, "".join(f"{piece}\n" for piece, _ in learned))
    return tokenizer


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch


class Encoder:
    """Turns sentences into padded ids; "[MASK]" and its like in a sentence are plain text.

    ``encode`` may be called from several threads.
    """

    def __init__(self, tokenizer: BertTokenizer, max_tokens: int = MAX_TOKENS) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._backend = tokenizer.backend_tokenizer
        self._backend.enable_truncation(max_tokens)
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # as text, not as the tokens
        self.pad, self.mask = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.size = vocabulary_size(tokenizer)

    def check(self, sentence: Callable[[int], str], count: int) -> list[str]:
        """Lines on the sentences that are cut and on unknown words, in all or an even sample.

        Args:
            sentence: the text of a number from 0 to ``count`` - 1.
            count: how many there are.
        """
        looked = range(0, count, max(1, count // LOOKED_AT))
        cut = pieces = 0
        unknown: Counter[str] = Counter()
        for batch in _batched(map(sentence, looked), 1000):
            for text, encoding in zip(batch, self._backend.encode_batch(batch), strict=True):
                cut += bool(encoding.overflowing)
                pieces += sum(word is not None for word in encoding.word_ids)
                if self.tokenizer.unk_token_id in encoding.ids:
                    unknown.update(
                        text[slice(*place)]
                        for id, place in zip(encoding.ids, encoding.offsets, strict=True)
                        if id == self.tokenizer.unk_token_id
                    )
        of = f"{len(looked):,}" + (" sampled" if len(looked) < count else "")
        lines = [f"Cut at {self.max_tokens} tokens: {cut:,} of {of} sentences."] if cut else []
        total = unknown.total()
        line = f"[UNK]: {total:,} of {pieces:,} word pieces in {of} sentences"
        if total > UNKNOWN_SHARE * pieces:
            common = ", ".join(repr(word) for word, _ in unknown.most_common(5))
            line += (
                f" ({100 * total / pieces:.1f}%), most often {common}: is this the vocabulary of "
                "their language and case?"
            )
        return [*lines, line + ("" if line.endswith("?") else ".")]

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Encode as [CLS] words [SEP].

        Returns:
            ids_BL (int64, padded to the longest), mask_BL (bool), and the number of sentences
            that were cut at ``max_tokens``.
        """
        encodings = self._backend.encode_batch(list(sentences))
        lengths_B = np.array([len(encoding.ids) for encoding in encodings])
        mask_BL = np.arange(lengths_B.max())[None] < lengths_B[:, None]
        ids_BL = np.full(mask_BL.shape, self.pad, dtype=np.int64)
        ids_BL[mask_BL] = [token for encoding in encodings for token in encoding.ids]
        return ids_BL, mask_BL, sum(bool(encoding.overflowing) for encoding in encodings)
