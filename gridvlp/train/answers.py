"""Answers as classes: how an answer is normalised, and which answers there are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gridvlp.atomic import write_text
from gridvlp.data import json_files, json_values
from gridvlp.errors import UserError

PRETRAINING_ANSWERS = 9_500  # LXMERT, section 3.3: about 90% of all questions of its three sets
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPELLINGS = {word: str(number) for number, word in enumerate(NUMBER_WORDS, 1)} | {"grey": "gray"}


def normalize_answer(answer: str) -> str:
    """Bring an answer to the form of the pre-training vocabulary (LXMERT).

    Lower case, one final full stop and one leading "a", "an" and "the" removed, and, as whole
    answers only, number words to digits and grey to gray.
    """
    answer = answer.lower().strip()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in ("a ", "an ", "the "):
        answer = answer.removeprefix(article).strip()
    return _SPELLINGS.get(answer, answer)


def soft_score(annotators: int) -> float:
    """VQA v2's soft target for an answer that ``annotators`` of 10 gave: 0, .3, .6, .9, 1.

    The mean over the ten ways to leave one annotator out of min(1, others who agree / 3).
    """
    return min(1.0, round(0.3 * annotators, 1))


class AnswerVocabulary(Sequence[str]):
    """Class names, in the order of an answer head's rows.

    Args:
        names: the answers, as they are.

    Raises:
        UserError: there are none, or one occurs twice.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.ids = {name: index for index, name in enumerate(self.names)}
        if not self.names:
            raise UserError("The answer vocabulary is empty.")
        if len(self.ids) < len(self.names):
            twice = next(name for i, name in enumerate(self.names) if self.ids[name] != i)
            raise UserError(f"The answer vocabulary has {twice!r} twice.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int or slice
        return self.names[index]

    def __contains__(self, answer: object) -> bool:
        return answer in self.ids

    def id(self, answer: str) -> int | None:
        """The class of an answer, or None where it has none; the answer is taken as it is."""
        return self.ids.get(answer)

    @classmethod
    def from_file(cls, path: str | Path) -> AnswerVocabulary:
        """Read a JSON list of answers, or of ``{"ans": answer, ...}`` as LXMERT publishes it.

        Raises:
            UserError: the file is missing, broken, or holds something else.
        """
        path = Path(path)
        entries = enumerate(json_files.elements(path))
        names = [e if type(e) is str else json_values.string(e, "ans", path, i) for i, e in entries]
        try:
            return cls(names)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a plain JSON list, atomically."""
        write_text(Path(path), json.dumps(list(self.names), ensure_ascii=False, indent=0) + "\n")


def most_frequent(weights: Mapping[str, float], most: int = PRETRAINING_ANSWERS) -> list[str]:
    """The answers with the greatest weights, in alphabetical order as in LXMERT's list.

    LXMERT's paper gives the size of its list and what it covers, not how it was drawn; the most
    frequent ones are our reading. Equal weights are taken in alphabetical order.
    """
    ranked = sorted((name for name in weights if weights[name] > 0), key=lambda n: (-weights[n], n))
    return sorted(ranked[:most])
