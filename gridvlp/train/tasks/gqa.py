"""GQA: compositional questions made from scene graphs (Hudson and Manning 2019)."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds
from gridvlp.errors import UserError
from gridvlp.train.options import FINE_TUNING
from gridvlp.train.tasks.task import Example, Reader, Task, json_text, percent

if TYPE_CHECKING:
    from torch import Tensor

_SEMANTIC = {
    "attr": "attribute",
    "cat": "category",
    "global": "scene",
    "obj": "object",
    "rel": "relation",
}
_FINAL = ("exist", "query: name", "choose name")


@dataclass(frozen=True, slots=True)
class Truth:
    """What the official report needs of a question.

    ``valid`` and ``plausible`` are None where the split has no choices file, ``steps`` where the
    question has no program.
    """

    answer: str
    balanced: bool
    structural: str
    semantic: str
    detailed: str
    group: str | None
    entailed: tuple[str, ...]
    valid: frozenset[str] | None
    plausible: frozenset[str] | None
    steps: int | None = None


class GQA(Task):
    """GQA with the figures of its official report.

    Splits: ``train``, ``val`` and ``testdev`` read <split>_balanced_questions.json, or the
    <split>_all_questions.json where only that is there; ``val-all``, ``testdev-all`` and
    ``test-all`` read all questions, which the official consistency needs. ``submission`` reads
    submission_all_questions.json, which the server wants answered (those of test and of challenge,
    and more). It, ``test`` and ``challenge`` have no labels.
    Validity and plausibility need <split>_choices.json from GQA's evaluation files.

    Args:
        answers: the class names; None to build them.
        loss: "bce" (mean times classes, as for VQA) or "ce"; LXMERT has both.
    """

    name = "gqa"
    choices = {"loss": ("bce", "ce")}  # noqa: RUF012
    splits = (
        *("train", "val", "testdev", "test", "challenge", "submission"),
        *("val-all", "testdev-all", "test-all"),
    )
    train_splits = ("train", "val")
    valid_split = "testdev"
    test_split = "testdev"
    training = FINE_TUNING["gqa"]

    def files(self, data: Path, split: str) -> list[Path]:
        """The questions."""
        tier, _, everything = split.partition("-")
        if tier == "submission":  # it has no balanced file
            everything = "all"
        folder = Path(data) / "gqa"
        balanced, full = (folder / f"{tier}_{kind}_questions.json" for kind in ("balanced", "all"))
        return [full if everything or (full.is_file() and not balanced.is_file()) else balanced]

    def photo_folders(self, data: Path, split: str) -> list[Path]:
        """GQA's own folder; most of its photos are Visual Genome's."""
        data = Path(data)
        return [data / "gqa" / "images", data / "vg" / "VG_100K", data / "vg" / "VG_100K_2"]

    def count_answers(self, data: Path) -> list[str]:
        """Every answer of train + val (LXMERT: 1,842)."""
        answers: set[str] = set()
        for split in self.train_splits:
            (path,) = self.files(data, split)
            if split == "train" or path.is_file():
                for id, entry in json_files.items(path):
                    answers.add(json_values.string(entry, "answer", path, id))
            else:
                self.notes.append(f"classes from train alone: {path} is not there")
        return sorted(answers)

    def _read(self, data: Path, split: str, reader: Reader) -> None:
        (path,) = self.files(data, split)
        if "_all_" in path.name and split != "submission" and not split.endswith("-all"):
            reader.report.notes.append(f"{path.name} is read, for want of the balanced file")
        choices_path = Path(data) / "gqa" / f"{split.partition('-')[0]}_choices.json"
        choices = _choices(choices_path) if choices_path.is_file() else {}
        ids = ImageIds(data / "vg")
        for number, (id, entry) in enumerate(json_files.items(path)):
            image = json_values.name(entry, "imageId", path, id)
            answer = json_values.optional(json_values.string, None, entry, "answer", path, id)
            truth = None if answer is None else _truth(answer, entry, choices.get(id), path, id)
            reader.add(
                id,
                json_values.field(entry, "question", path, id),
                [ids.gqa(image)],
                [(truth.answer, 1.0)] if truth else (),
                (truth.detailed or truth.structural) if truth else "",
                truth,
                number,
            )

    def loss(self, logits_BA: Tensor, targets_BA: Tensor) -> Tensor:
        """As the ``loss`` option says; with "ce" a question without a class adds nothing.

        LXMERT's own cross-entropy differs: there a question without a class counts as one of class
        0, and the mean is multiplied by the number of classes.
        """
        from torch.nn import functional

        if self.options["loss"] == "bce":
            mean = functional.binary_cross_entropy_with_logits(logits_BA, targets_BA)
            return mean * logits_BA.shape[1]
        losses_B = functional.cross_entropy(logits_BA, targets_BA, reduction="none")
        return losses_B.sum() / max(1, self.terms(targets_BA))

    def terms(self, targets_BA: Tensor) -> int:
        """With "ce" only the questions that have a class."""
        if self.options["loss"] == "bce":
            return len(targets_BA)
        return int((targets_BA.sum(dim=1) > 0).sum())

    def credit(self, truth: Truth, answer: str) -> float:
        """1 where the answer is the label."""
        return float(answer == truth.answer)

    def score(self, examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, float]:
        """The official report (eval.py of GQA's release) without its "grounding".

        Accuracy, binary, open, consistency, validity, plausibility, distribution; accuracy per
        structural, semantic and detailed type (the last is ours), per reasoning steps (those of the
        question's program but for its final query: ``Truth.steps``) and per words of the question.
        Percentages over the balanced questions, but for "distribution" (a chi-square, lower is
        better). A figure that the files do not allow is absent. Where some entailed questions are
        not among the examples (they are not all balanced), consistency is over those that are and
        says so in its name.
        """
        pairs = self.labelled(examples, predicted)
        right = {example.id: self.credit(example.truth, answer) for example, answer in pairs}
        values: dict[str, list[float]] = defaultdict(list)
        broken: dict[str, list[float]] = defaultdict(list)
        lengths: dict[tuple[str, int], list[float]] = defaultdict(list)
        gold: dict[str, Counter[str]] = defaultdict(Counter)
        given: dict[str, Counter[str]] = defaultdict(Counter)
        complete = True
        counted = [pair for pair in pairs if pair[0].truth.balanced] or pairs
        for example, answer in counted:
            truth, correct = example.truth, right[example.id]
            values["accuracy"].append(correct)
            values["open" if truth.structural == "query" else "binary"].append(correct)
            if truth.valid is not None:
                values["validity"].append(float(answer in truth.valid))
            if truth.plausible is not None:
                values["plausibility"].append(float(answer in truth.plausible))
            asked = [other for other in truth.entailed if other != example.id]
            answered = [right[other] for other in asked if other in right]
            if correct and asked:
                complete &= len(answered) == len(asked)
                if answered:
                    values["consistency"].append(sum(answered) / len(answered))
            if truth.group is not None:
                gold[truth.group][truth.answer] += 1
                given[truth.group][answer] += 1
            for title, kind in (
                ("structural", truth.structural),
                ("semantic", _SEMANTIC.get(truth.semantic, truth.semantic)),
                ("detailed", truth.detailed),
            ):
                if kind:
                    broken[f"{title}: {kind}"].append(correct)
            if truth.steps is not None:
                lengths["steps", truth.steps].append(correct)
            lengths["words", len(example.sentence.split())].append(correct)
        if not any(example.truth.structural for example, _ in counted):
            del values["binary"]  # without types nothing is known to be binary
        order = ("accuracy", "binary", "open", "consistency", "validity", "plausibility")
        scores = {name: percent(values[name]) for name in order if values.get(name)}
        if "consistency" in scores and not complete:
            scores = {
                "consistency (entailed questions that were asked)"
                if name == "consistency"
                else name: value
                for name, value in scores.items()
            }
        if gold:
            scores["distribution"] = _chi_square(gold, given) / 100
        scores |= {name: percent(broken[name]) for name in sorted(broken)}
        return scores | {f"{name}: {n}": percent(lengths[name, n]) for name, n in sorted(lengths)}

    def submission(self, ids: Sequence[str], answers: Sequence[str]) -> str:
        """``[{"questionId": str, "prediction": str}, ...]``, as EvalAI takes it."""
        entries = zip(ids, answers, strict=True)
        return json_text([{"questionId": id, "prediction": answer} for id, answer in entries])


def _chi_square(gold: dict[str, Counter[str]], given: dict[str, Counter[str]]) -> float:
    """Mean over the questions of their group's chi-square of given against true answers."""
    weighted = questions = 0.0
    for group, expected in gold.items():
        size = sum(expected.values())
        weighted += size * sum((given[group][a] - n) ** 2 / n for a, n in expected.items())
        questions += size
    return weighted / questions


def _choices(path: Path) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """The valid and the plausible answers of each question."""
    choices = {}
    unique = json_values.Unique(path, "question id")
    for number, (id, entry) in enumerate(json_files.items(path)):
        unique.add(id, number)
        valid, plausible = (
            frozenset(json_values.strings(entry, name, path, id)) for name in ("valid", "plausible")
        )
        choices[id] = valid, plausible
    return choices


def _truth(
    answer: str,
    entry: Any,
    choices: tuple[frozenset[str], frozenset[str]] | None,
    path: Path,
    id: str,
) -> Truth:
    optional, string = json_values.optional, json_values.string
    types = optional(json_values.mapping, {}, entry, "types", path, id)
    groups = optional(json_values.mapping, {}, entry, "groups", path, id)
    structural, semantic, detailed = (
        sys.intern(optional(string, "", types, name, path, id))
        for name in ("structural", "semantic", "detailed")
    )
    group = optional(string, None, groups, "global", path, id)
    # The official evaluator's own rule for questions on what two objects have in common.
    common = frozenset({"color", "material", "shape"}) if "Common" in detailed else None
    valid, plausible = (None, None) if choices is None else [common or names for names in choices]
    return Truth(
        sys.intern(answer),
        optional(json_values.flag, True, entry, "isBalanced", path, id),
        structural,
        semantic,
        detailed,
        None if group is None else sys.intern(group),
        tuple(optional(json_values.strings, [], entry, "entailed", path, id)),
        valid,
        plausible,
        _steps(entry, path, id),
    )


def _steps(entry: Any, path: Path, id: str) -> int | None:
    """Reasoning steps as the official evaluator counts them: none for the final query of a name."""
    program = entry.get("semantic")
    if program is None:
        return None
    if not isinstance(program, list) or not all(isinstance(step, dict) for step in program):
        raise UserError(f'{path}, entry {id}: "semantic" is not a list of steps.')
    steps = (f"{step.get('operation')}: {step.get('argument')}" for step in program)
    return sum(not any(final in step for final in _FINAL) for step in steps)
