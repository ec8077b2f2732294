"""A run's folder: what was asked, what it ran on, what was measured, where the weights are.

run.json            options, chosen values, versions, commit, data fingerprints, seed
metrics.jsonl       one line per logged step; truncated to the checkpoint on resume
tensorboard/        the same as curves
checkpoint/         the last step: weights, optimiser, step (for resuming)
model/              the result, in the transformers layout, with its tokenizer
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from gridvlp.atomic import sync_folder, sync_tree, write_json, write_text
from gridvlp.errors import UserError
from gridvlp.run.environment import environment
from gridvlp.run.signals import interrupts_held


class RunFolder:
    """One training run on disk, made new or taken up again; used in a ``with`` block.

    Args:
        path: the folder.
        options: the values that define the run's result; a resumed run must have the same.
        facts: what else is worth recording (counts, fingerprints).
        writer: false in every process of a distributed run but the first.

    Raises:
        UserError: another process holds the run, or it was begun with other options.
    """

    def __init__(
        self, path: Path, options: dict[str, Any], facts: dict[str, Any], writer: bool = True
    ) -> None:
        self.path, self.writer = path, writer
        self._curves: SummaryWriter | None = None
        options = json.loads(json.dumps(options, default=str))
        self.record: dict[str, Any] = {
            "options": options,
            "facts": json.loads(json.dumps(facts, default=str)),
            "environment": environment(),
        }
        if not writer:
            return
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"Another process is training in {path}: wait for it or stop it."
            ) from error
        self._recover()
        record = path / "run.json"
        if record.exists():
            try:
                self._check(json.loads(record.read_text()), self.record)
            except UserError:
                self._lock.close()
                raise
        else:
            write_json(record, self.record)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._curves is not None:
            self._curves.close()
        if self.writer:
            self._lock.close()

    def _check(self, began: dict[str, Any], now: dict[str, Any]) -> None:
        before, options = dict(began["options"]), dict(now["options"])
        if before.get("precision") == "auto":  # as older versions recorded it: any may go on
            before["precision"] = options.get("precision")
        # An option of an older run that is none any more decides nothing.
        changed = sorted(name for name in options if before.get(name) != options[name])
        if changed:
            told = "; ".join(
                f"{name} was {before.get(name)!r}, is {options.get(name)!r}" for name in changed[:4]
            )
            raise UserError(
                f"{self.path} was begun with other options ({told}). "
                "Give those again to go on, or name another folder to begin anew."
            )
        facts, known = now["facts"], began["facts"]
        # A store may have grown by photos that this run does not read, "lines" are words, and an
        # older run knows less.
        other = sorted(
            _with_origin(name, facts[name])
            for name in facts.keys() & known.keys() - {"store", "lines"}
            if facts[name] != known[name]
        )
        if other:
            raise UserError(
                f"The data have changed since {self.path} was begun ({', '.join(other)}): it would "
                "not be of one set of data. Bring the data back, or name another folder to begin "
                "anew."
            )

    @property
    def finished(self) -> dict[str, Any] | None:
        """The final figures, once the run is complete."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, figures: dict[str, Any]) -> None:
        """Record the final figures: the run is complete."""
        if self.writer:
            write_json(self.path / "result.json", figures)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step to metrics.jsonl and to the curves."""
        if not self.writer:
            return
        if self._curves is None:
            self._curves = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._curves.add_scalar(name, value, step)

    def save_checkpoint(
        self,
        save_model: Callable[[Path], None],
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
    ) -> None:
        """Replace the checkpoint by a newer one; a kill leaves one of the two whole."""

        def fill(folder: Path) -> None:
            save_model(folder)
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            write_json(folder / "state.json", state | {"log_bytes": self._log_bytes()})

        self.replace_folder("checkpoint", fill)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state of the last checkpoint, whose weights stay."""
        if self.writer:
            write_json(
                self.path / "checkpoint" / "state.json", state | {"log_bytes": self._log_bytes()}
            )

    def checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The last checkpoint and its state, if any; forgets what was logged after it."""
        folder = self.path / "checkpoint"
        log = self.path / "metrics.jsonl"
        if not folder.exists():
            if self.writer:
                log.unlink(missing_ok=True)
            return None
        state = json.loads((folder / "state.json").read_text())
        if self.writer and log.exists():
            if "log_bytes" in state:
                os.truncate(log, min(state["log_bytes"], log.stat().st_size))
            else:  # of an older version
                kept = [
                    line for line in log.read_text().splitlines() if _step_of(line) <= state["step"]
                ]
                write_text(log, "".join(line + "\n" for line in kept))
        return folder, state

    def _log_bytes(self) -> int:
        log = self.path / "metrics.jsonl"
        return log.stat().st_size if log.exists() else 0

    @interrupts_held()
    def replace_folder(self, name: str, fill: Callable[[Path], None]) -> None:
        """Write a folder under a temporary name and put it in place of an older one."""
        if not self.writer:
            return
        target, new, old = (self.path / (name + suffix) for suffix in ("", ".new", ".old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        fill(new)
        sync_tree(new)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        sync_folder(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self) -> None:
        """Undo a replacement that was cut between its two renames."""
        for name in ("checkpoint", "model"):
            target, old = self.path / name, self.path / f"{name}.old"
            if old.exists() and not target.exists():
                os.rename(old, target)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(self.path / f"{name}.new", ignore_errors=True)


def _with_origin(name: str, fact: Any) -> str:
    return f"{name} from {fact['from']}" if isinstance(fact, dict) and "from" in fact else name


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the line that a kill cut in half
        return float("inf")
