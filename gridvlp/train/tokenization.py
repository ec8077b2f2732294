"""Sentences to word pieces: any BERT vocabulary, or one trained on the corpus."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from uuid import uuid4

import numpy as np
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer

from gridvlp.errors import UserError
from gridvlp.progress import track
from gridvlp.train.corpora import Corpus

MAX_TOKENS = 20  # paper 4.2: the sentence's length, [CLS] and [SEP] included as in LXMERT
BERT_VOCABULARY_SIZE = 30522
LOOKED_AT = 20_000  # sentences, to count those that are cut
MAX_ALPHABET = 1000  # as in BERT's WordPiece learner
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(source: str | Path) -> BertTokenizer:
    """A tokenizer from a ``vocab.txt`` or from a folder that holds one.

    Raises:
        UserError: there is no vocabulary, or it lacks one of BERT's special tokens.
    """
    path = Path(source)
    try:
        if path.is_file():
            words = path.read_text(encoding="utf-8").splitlines()
            lacking = [token for token in SPECIAL_TOKENS if token not in words]
            if lacking:
                raise UserError(
                    f"The vocabulary {source} lacks {', '.join(lacking)} of BERT's kind."
                )
            return BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        if path.is_dir() and not any((path / n).exists() for n in ("vocab.txt", "tokenizer.json")):
            raise FileNotFoundError(path)
        return BertTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{source} holds no BERT vocabulary (vocab.txt, tokenizer.json)."
        ) from error


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
        return load_tokenizer(path)
    with track("Learning word pieces", 2 * len(corpus), "sentences") as bar:  # two passes

        def sentences() -> Iterator[str]:
            for number, sentence in enumerate(corpus.sentences(), 1):
                yield sentence
                if number % 4096 == 0:
                    bar.advance(4096)

        tokenizer = train_tokenizer(sentences)
        bar.advance(bar.total - bar.done)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    with suppress(
        OSError
    ):  # a cache that cannot be written to costs the next start this time again
        temporary.write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
        os.replace(temporary, path)
    return tokenizer


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch


class Encoder:
    """Turns sentences into padded ids; counts what it had to cut.

    ``encode`` may be called from several threads.
    """

    def __init__(self, tokenizer: BertTokenizer, max_tokens: int = MAX_TOKENS) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._backend = tokenizer.backend_tokenizer
        self._backend.enable_truncation(max_tokens)
        self._backend.no_padding()
        self.pad, self.mask = tokenizer.pad_token_id, tokenizer.mask_token_id

    def cut(self, sentence: Callable[[int], str], count: int) -> str | None:
        """A line on the sentences that are cut, from all or an even sample of them; None if none.

        Args:
            sentence: the text of a number from 0 to ``count`` - 1.
            count: how many there are.
        """
        looked = range(0, count, max(1, count // LOOKED_AT))
        texts = map(sentence, looked)
        long = sum(self.encode(batch)[2] for batch in _batched(texts, 1000))
        if not long:
            return None
        of = f"{len(looked):,}" + (" sampled" if len(looked) < count else "")
        return f"Cut at {self.max_tokens} tokens: {long:,} of {of} sentences."

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
