"""What a run leaves on disk outlasts a power cut and other processes."""

import json
import os
from pathlib import Path

import pytest
import torch

from gridvlp import atomic
from gridvlp.atomic import whole_folder, write_json, write_text
from gridvlp.errors import UserError
from gridvlp.run.folder import RunFolder


@pytest.fixture
def events(monkeypatch):
    """The files and folders that were synced, and the renames, in their order."""
    seen = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def name(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def synced(descriptor):
        seen.append(name(descriptor))
        fsync(descriptor)

    def renamed(source, target):
        seen.append(f"{Path(source).name} -> {Path(target).name}")
        (rename if Path(source).is_dir() else replace)(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, events):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with RunFolder(tmp_path / "run", {}, {}) as run:
        events.clear()
        run.save_checkpoint(
            lambda folder: (folder / "model.safetensors").write_bytes(b"1"), optimizer, {"step": 1}
        )
    at = events.index("checkpoint.new -> checkpoint")
    for name in ("model.safetensors", "optimizer.pt", "state.json", "checkpoint.new"):
        assert name in events[:at], name
    assert "run" in events[at:]  # the new name, too


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, events, write):
    write(tmp_path / "file", "text")
    *_, synced, renamed, folder = events
    assert renamed == f"{synced} -> file"
    assert folder == tmp_path.name
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_processes_with_one_number_do_not_meet_in_a_temporary_folder(tmp_path, monkeypatch):
    """Containers on one disk have equal process numbers."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    folder = tmp_path / "made"
    with whole_folder(folder, "mark") as one, whole_folder(folder, "mark") as other:
        assert one != other
        (one / "mark").write_text("one")
        (other / "mark").write_text("other")
    assert (folder / "mark").read_text() == "other"  # the inner block ended first
    assert list(tmp_path.iterdir()) == [folder]
    assert atomic.user_cache()


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no"), whole_folder(tmp_path / "made", "mark"):
        raise ValueError("no")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert not list(tmp_path.iterdir())


def test_what_was_logged_after_a_checkpoint_is_forgotten(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with RunFolder(tmp_path / "run", {}, {}) as run:
        run.log(1, {"loss": 1.0})
        run.save_checkpoint(lambda folder: None, optimizer, {"step": 1})
        run.log(1, {"accuracy": 2.0})  # of the same step
        run.log(2, {"loss": 3.0})
        assert run.checkpoint()[1]["step"] == 1
    log = tmp_path / "run" / "metrics.jsonl"
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"step": 1, "loss": 1.0}]
    state = tmp_path / "run" / "checkpoint" / "state.json"
    state.write_text('{"step": 1}')  # of an older version
    log.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    with RunFolder(tmp_path / "run", {}, {}) as run:
        run.checkpoint()
    assert log.read_text() == '{"step": 1}\n'


def test_an_older_runs_automatic_precision_goes_on_with_any(tmp_path):
    with RunFolder(tmp_path / "run", {"precision": "auto", "seed": 0}, {}):
        pass
    with RunFolder(tmp_path / "run", {"precision": "bfloat16", "seed": 0}, {}):
        pass
    with pytest.raises(UserError, match="seed was 0, is 1"):
        RunFolder(tmp_path / "run", {"precision": "bfloat16", "seed": 1}, {})
    with RunFolder(tmp_path / "other", {"precision": "bfloat16"}, {}):
        pass
    with pytest.raises(UserError, match="precision was 'bfloat16', is 'float16'"):
        RunFolder(tmp_path / "other", {"precision": "float16"}, {})
