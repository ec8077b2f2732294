"""What a task of one's own imports, from one path that stays (docs/tasks.md)."""

from gridvlp.data import json_files, json_values
from gridvlp.train.options import TrainingSettings
from gridvlp.train.tasks.task import Example, Reader, Split, Task, json_text, percent

__all__ = [
    "Example",
    "Reader",
    "Split",
    "Task",
    "TrainingSettings",
    "json_files",
    "json_text",
    "json_values",
    "percent",
]
