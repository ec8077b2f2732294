"""The tasks to fine-tune on; a fourth is one file, which the commands take by its path."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
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
        name: vqa, gqa, nlvr2, or the path of a .py file with one subclass of Task (docs/tasks.md),
            which is executed.
        answers: class names (a checkpoint's, or ``AnswerVocabulary.from_file(path)``); None to
            build them with ``task.build_answers(data)``.
        options: the task's own: ``loss`` of GQA, ``head`` of NLVR2.

    Raises:
        UserError: there is no such task (with the name that may have been meant), no such option,
            or the file does not hold one task.
    """
    if is_file(name):
        return _from_file(Path(name))(answers, **options)
    try:
        kind = TASKS[name]
    except KeyError:
        close = get_close_matches(name.lower(), TASKS, n=1, cutoff=0.4)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"There is no task {name!r}; there are {', '.join(TASKS)}.{meant}"
        ) from None
    return kind(answers, **options)


def is_file(name: str) -> bool:
    """Whether a task is given as a file of Python."""
    return name.endswith(".py")


def _from_file(path: Path) -> type[Task]:
    """The one task that a file defines.

    Raises:
        UserError: no such file, it does not run, or it defines no task or several.
    """
    module = f"gridvlp_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"There is no file {path} to take a task from.")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded  # dataclasses look their module up
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        raise UserError(f"{path} does not run: {type(error).__name__}: {error}") from error
    kinds = [
        value
        for value in vars(loaded).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module
    ]
    if len(kinds) != 1:
        raise UserError(f"{path} must define one subclass of Task; it defines {len(kinds)}.")
    if inspect.isabstract(kinds[0]):
        missing = ", ".join(sorted(kinds[0].__abstractmethods__))
        raise UserError(f"{path}: {kinds[0].__name__} lacks {missing}; docs/tasks.md shows one.")
    return kinds[0]
