"""The tasks to fine-tune on; a fourth is one file and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from gridvlp.errors import UserError
from gridvlp.train.tasks.gqa import GQA
from gridvlp.train.tasks.nlvr2 import NLVR2
from gridvlp.train.tasks.task import Example, Split, SplitReport, Task
from gridvlp.train.tasks.vqa import VQA

__all__ = ["TASKS", "Example", "Split", "SplitReport", "Task", "get_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (VQA, GQA, NLVR2)}


def get_task(name: str, answers: Iterable[str] | None = None, **options: Any) -> Task:
    """The task of that name.

    Args:
        name: vqa, gqa or nlvr2.
        answers: class names (a checkpoint's, or ``AnswerVocabulary.from_file(path)``); None to
            build them with ``task.build_answers(data)``.
        options: the task's own: ``loss`` of GQA, ``head`` of NLVR2.

    Raises:
        UserError: there is no such task (with the name that may have been meant) or no such option.
    """
    try:
        kind = TASKS[name]
    except KeyError:
        close = get_close_matches(name.lower(), TASKS, n=1, cutoff=0.4)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"There is no task {name!r}; there are {', '.join(TASKS)}.{meant}"
        ) from None
    return kind(answers, **options)
