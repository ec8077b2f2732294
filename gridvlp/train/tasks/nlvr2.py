"""NLVR2: is the sentence true of the two photos? (Suhr et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds
from gridvlp.errors import UserError
from gridvlp.train.options import FINE_TUNING
from gridvlp.train.tasks.task import Example, Reader, Task, percent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Truth:
    """The label, and which sentence it is: the identifier without the pair's number."""

    label: str
    sentence: str


class NLVR2(Task):
    """NLVR2 with accuracy and consistency.

    Splits: ``train``, ``dev``, ``test1`` (test-P, public) and ``test2`` (test-U), one JSON-lines
    file each.

    Args:
        answers: the class names; None to build them.
        head: "pair" (each photo with the sentence, LXMERT), "triplet" (both photos in one sequence,
            as UNITER arranges them, but classified by LXMERT's two layers where UNITER has one
            Linear) or "pair-attention" (UNITER's best).
    """

    name = "nlvr2"
    choices = {"head": ("pair", "triplet", "pair-attention")}  # noqa: RUF012
    images_per_example = 2
    splits = ("train", "dev", "test1", "test2")
    aliases = {"test-P": "test1", "test": "test1", "test-U": "test2"}  # noqa: RUF012
    train_splits = ("train",)
    valid_split = "dev"
    test_split = "test1"
    training = FINE_TUNING["nlvr2"]
    submission_suffix = ".csv"

    def files(self, data: Path, split: str) -> list[Path]:
        """The lines."""
        return [Path(data) / "nlvr2" / f"{split}.json"]

    def photo_folders(self, data: Path, split: str) -> list[Path]:
        """The split's folder; train has one more level of folders in it."""
        return [Path(data) / "nlvr2" / "images" / split]

    def count_answers(self, data: Path) -> list[str]:
        """False and True, in the order of LXMERT's 0 and 1."""
        return ["False", "True"]

    def _read(self, data: Path, split: str, reader: Reader) -> None:
        (path,) = self.files(data, split)
        for number, entry in json_files.lines(path):
            where = f"on line {number}"
            identifier = json_values.string(entry, "identifier", path, where)
            try:
                left, right = ImageIds.nlvr2(identifier)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            set_of, _, sentence = identifier.rsplit("-", 2)
            label = _label(entry, path, where)
            reader.add(
                identifier,
                json_values.field(entry, "sentence", path, where),
                [(left,), (right,)],
                [(label, 1.0)] if label else (),
                "",
                Truth(label, f"{set_of}-{sentence}") if label else None,
                number,
            )

    def loss(self, logits_BA: Tensor, targets_BA: Tensor) -> Tensor:
        """Cross-entropy over the two classes (LXMERT)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_BA, targets_BA)

    def credit(self, truth: Truth, answer: str) -> float:
        """1 where the answer is the label."""
        return float(answer == truth.label)

    def score(self, examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, float]:
        """Accuracy, and consistency: the share of sentences that are right on all their pairs."""
        pairs = self.labelled(examples, predicted)
        right = [self.credit(example.truth, answer) for example, answer in pairs]
        whole: dict[str, float] = {}
        for (example, _), correct in zip(pairs, right, strict=True):
            sentence = example.truth.sentence
            whole[sentence] = min(whole.get(sentence, 1.0), correct)
        return {"accuracy": percent(right), "consistency": percent(list(whole.values()))}

    def submission(self, ids: Sequence[str], answers: Sequence[str]) -> str:
        """``identifier,True|False`` lines without a header, as the official evaluator reads."""
        return "".join(f"{id},{answer}\n" for id, answer in zip(ids, answers, strict=True))


def _label(entry: Any, path: Path, where: str) -> str | None:
    """The class of a line; None where it has no label."""
    label = entry.get("label")
    if label is None:
        return None
    if type(label) is bool or (type(label) is str and label.capitalize() in ("True", "False")):
        return str(label).capitalize()
    raise json_values.BadEntry(
        entry, path, where, f'has a "label" that is not True or False: {label!r}'
    )
