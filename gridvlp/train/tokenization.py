"""Sentences to word pieces: any BERT vocabulary, or one trained on the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer

from gridvlp.errors import UserError

MAX_TOKENS = 20  # paper 4.2: the sentence's length, [CLS] and [SEP] included as in LXMERT
BERT_VOCABULARY_SIZE = 30522


def load_tokenizer(source: str | Path) -> BertTokenizer:
    """A tokenizer from a ``vocab.txt`` or from a folder that holds one.

    Raises:
        UserError: there is no vocabulary, or it lacks one of BERT's special tokens.
    """
    path = Path(source)
    try:
        if path.is_file():
            words = path.read_text(encoding="utf-8").splitlines()
            tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        else:
            tokenizer = BertTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{source} holds no BERT vocabulary (vocab.txt or tokenizer.json)."
        ) from error
    known = tokenizer.get_vocab()
    lacking = [
        token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in known
    ]
    if lacking:
        raise UserError(
            f"The vocabulary {source} lacks {', '.join(lacking)}: it is not BERT's kind."
        )
    return tokenizer


def train_tokenizer(sentences: Iterable[str], size: int = BERT_VOCABULARY_SIZE) -> BertTokenizer:
    """Learn an uncased WordPiece vocabulary of at most ``size`` pieces from sentences."""
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(
        sentences, vocab_size=size, min_frequency=2, show_progress=False, limit_alphabet=1000
    )
    return BertTokenizer(vocab=learner.get_vocab())


class Encoder:
    """Turns sentences into padded ids; counts what it had to cut.

    ``encode`` may be called from several threads.
    """

    def __init__(self, tokenizer: BertTokenizer, max_tokens: int = MAX_TOKENS) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.enable_truncation(max_tokens)
        self._backend.no_padding()
        self.pad, self.mask = tokenizer.pad_token_id, tokenizer.mask_token_id

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
