"""Weights from folders into models: strictly, and only for maps of the encoder they know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import BertTokenizer
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from transformers.utils import logging as transformers_logging

from gridvlp.errors import UserError, first_line
from gridvlp.store import FeatureStore
from gridvlp.store.recipe import differences_text, recipe_differences
from gridvlp.train.answers import normalize_answer
from gridvlp.train.model.fusion import (
    AnswerHead,
    GridVLPConfig,
    GridVLPForAnswering,
    GridVLPForPreTraining,
    GridVLPModel,
    TaskModel,
)
from gridvlp.train.tokenization import MAX_TOKENS, vocabulary_digest

POSITIONS, MODALITIES = "position_embeddings.weight", "token_type_embeddings.weight"
RESIZABLE = (POSITIONS, MODALITIES)
ANSWER_ROWS = "answering.classifier."
HEADS = ("cls.", "matching.", "answering.")
OF_BERT = ("pooler.", "grid_projection.", "box_projection.")  # what a plain BERT may lack

transformers_logging.disable_progress_bar()  # these models load and save in a moment

Model = TypeVar("Model", bound=BertPreTrainedModel)


def load_model(
    kind: type[Model],
    folder: str | Path,
    *,
    new: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    say: Callable[[str], object] = print,
    **changes: Any,
) -> tuple[Model, list[str]]:
    """Load weights strictly: every key must be used and none may be missing.

    Three things may have other sizes than in the file, and ``say`` tells of each: answer rows are
    matched by the answer's name (others start from zero), positions are cut or begun afresh, and a
    further modality starts as a copy of the last one (UNITER).

    Args:
        kind: the model class to build.
        folder: a folder in the transformers layout (or a hub name), ours or any BERT's.
        new: key prefixes that may be absent from the file and start fresh (a head).
        unused: key prefixes of the file that the model may leave aside (another task's head).
        say: called with lines for the person at the keyboard.
        changes: configuration values that replace those of the file.

    Returns:
        The model and the sorted names of the parameters that started fresh.

    Raises:
        UserError: the folder holds no model, or a key is missing, unexpected or misshaped.
    """
    before = load_config(folder)
    config = GridVLPConfig.from_dict({**before.to_dict(), **changes})
    config.max_position_embeddings = max(config.max_position_embeddings, MAX_TOKENS)
    model, info = _from_folder(kind, folder, config)
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    resized = {key for key in mismatched if key.endswith(RESIZABLE)}
    known = list(before.answers or [])
    if config.answers != before.answers:
        resized |= {key for key in model.state_dict() if known and key.startswith(ANSWER_ROWS)}
    fresh = set(info["missing_keys"]) | mismatched - resized
    missing = sorted(key for key in fresh if not key.startswith(new))
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith(unused))
    if missing or unexpected:
        raise UserError(
            f"The weights in {folder} do not fit {kind.__name__}: "
            f"{_some(missing)} missing or of another shape, {_some(unexpected)} unexpected. "
            "Use weights made by the command before this one, or train anew."
        )
    if resized - fresh:
        source, _ = _from_folder(kind, folder, before)
        _resize(model, source, resized - fresh, folder, say)
    return model, sorted(fresh)


def load_config(folder: str | Path) -> GridVLPConfig:
    """The configuration of a folder or a hub name, ours or any BERT's.

    Raises:
        UserError: there is none.
    """
    with _quiet():
        try:
            return GridVLPConfig.from_pretrained(folder)
        except (OSError, ValueError, TypeError, StrictDataclassError) as error:
            raise _no_model(folder, error) from error


def is_ours(config: GridVLPConfig) -> bool:
    """Whether a configuration was written by this project, and not with a plain BERT."""
    return any(name.startswith("GridVLP") for name in config.architectures or ())


def _from_folder(
    kind: type[Model], folder: str | Path, config: GridVLPConfig
) -> tuple[Model, dict[str, Any]]:
    with _quiet():
        try:
            loaded: Any = kind.from_pretrained(
                folder,
                config=config,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise _no_model(folder, error) from error
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what did not fit is said here, in one sentence
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _no_model(folder: str | Path, error: Exception) -> UserError:
    return UserError(f"{folder} holds no model that can be loaded: {first_line(error)}")


def _resize(
    model: nn.Module,
    source: nn.Module,
    keys: set[str],
    folder: str | Path,
    say: Callable[[str], object],
) -> None:
    """Fill parameters of other sizes than the file's from ``source``, which has the file's."""
    if any(key.startswith(ANSWER_ROWS) for key in keys):
        answers, known = (list(m.config.answers or ()) for m in (model, source))  # type: ignore[union-attr, arg-type]
        copied = copy_answer_rows(model.answering, answers, source.answering, known)  # type: ignore[arg-type]
        say(
            f"Answer head: {copied:,} of {len(answers):,} answers start from their row in {folder} "
            f"(which has {len(known):,}), the others from zero."
        )
    for key in sorted(key for key in keys if not key.startswith(ANSWER_ROWS)):
        rows_RD, before_RD = model.get_parameter(key), source.get_parameter(key)
        kept = min(len(rows_RD), len(before_RD))
        with torch.no_grad():
            rows_RD[:kept] = before_RD[:kept]
            if key.endswith(MODALITIES):
                rows_RD[kept:] = before_RD[-1]
        say(f"{key}: {len(before_RD):,} rows in {folder}, {len(rows_RD):,} here; {kept:,} kept.")


def start_pretraining(
    folder: str | Path,
    store: FeatureStore,
    pieces: int,
    answers: Sequence[str] | None,
    say: Callable[[str], object],
    other_recipe: bool = False,
    **changes: Any,
) -> tuple[GridVLPForPreTraining, list[str]]:
    """The model to pre-train, from a plain BERT's weights or from one of ours.

    Args:
        folder: a folder or a hub name.
        store: the maps that it will read.
        pieces: rows that the tokenizer's ids need.
        answers: the answer classes; None keeps those of the folder.
        say: called with lines for the person at the keyboard.
        other_recipe: as for ``check_recipe``.
        changes: configuration values that replace those of the folder.

    Returns:
        The model and the names of the parameters that started fresh.

    Raises:
        UserError: no such model, or one that fits neither the maps nor the vocabulary.
    """
    config = load_config(folder)
    if pieces > config.vocab_size:
        raise UserError(
            f"The vocabulary has {pieces:,} pieces, {folder} has {config.vocab_size:,}: give the "
            "--vocabulary that it was trained with, or none."
        )
    changes |= _of_store(store)
    if answers is not None:
        changes["answers"] = list(answers)
    if not is_ours(config):
        lacking = (*(f"bert.{name}" for name in OF_BERT), *HEADS)
        return load_model(
            GridVLPForPreTraining,
            folder,
            new=lacking,
            unused=("cls.seq_relationship.",),
            say=say,
            **changes,
        )
    check_recipe(config, store, folder, other_recipe, say)
    if GridVLPForPreTraining.__name__ in (config.architectures or ()):
        new = () if config.answers else ("answering.",)
        return load_model(GridVLPForPreTraining, folder, new=new, say=say, **changes)
    bert, _ = load_model(GridVLPModel, folder, unused=HEADS, say=say, **changes)
    model = GridVLPForPreTraining(bert.config)
    model.bert.load_state_dict(bert.state_dict())
    return model, sorted(key for key in model.state_dict() if key.startswith(HEADS))


def start_task(
    kind: type[TaskModel],
    folder: str | Path,
    store: FeatureStore,
    answers: Sequence[str],
    modalities: int,
    fresh: bool,
    say: Callable[[str], object],
    other_recipe: bool = False,
) -> TaskModel:
    """The model to fine-tune, from a pre-trained or fine-tuned one of ours or a plain BERT.

    A head that the folder has is kept, with its rows matched to ``answers``; another starts fresh.

    Args:
        kind: the model of the task.
        folder: a folder or a hub name.
        store: the maps that it will read.
        answers: the task's classes.
        modalities: how many there are: 2, or 3 where two images have one each.
        fresh: take the sizes alone and begin from scratch.
        say: called with lines for the person at the keyboard.
        other_recipe: as for ``check_recipe``.

    Raises:
        UserError: no such model, or one that does not fit the maps.
    """
    config = load_config(folder)
    new: tuple[str, ...] = ()
    if is_ours(config):
        check_recipe(config, store, folder, other_recipe, say)
    else:
        new = OF_BERT
    changes = {
        **_of_store(store),
        "type_vocab_size": max(modalities, config.type_vocab_size),
        "image_modalities": modalities - 1,
    }
    if fresh:
        say(f"Weights from scratch, sizes and vocabulary of {folder}.")
        return kind(
            GridVLPConfig.from_dict({**config.to_dict(), **changes, "answers": list(answers)})
        )
    heads = {kind.__name__}
    if kind is GridVLPForAnswering:
        heads.add(GridVLPForPreTraining.__name__)
    if config.answers and heads & set(config.architectures or ()):
        changes["answers"] = list(answers)
        model, _ = load_model(kind, folder, unused=HEADS[:2], say=say, **changes)
        say(f"Encoder and answer head from {folder}.")
        return model
    bert, started = load_model(GridVLPModel, folder, new=new, unused=HEADS, say=say, **changes)
    bert.config.answers = list(answers)
    model = kind(bert.config)
    model.bert.load_state_dict(bert.state_dict())
    say(f"Encoder from {folder}; answer head from scratch.")
    if started:
        say(f"From scratch, too: {', '.join(started)}.")
    return model


def _of_store(store: FeatureStore) -> dict[str, Any]:
    return {
        "grid_channels": store.channels,
        "grid_recipe": store.recipe,
        "grid_encoder": None,
        "regions": store.kind == "regions",
    }


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return f"{len(keys)} keys ({shown}{', ...' if len(keys) > 3 else ''})" if keys else "no keys"


def copy_answer_rows(
    head: AnswerHead, answers: list[str], source: AnswerHead, known: list[str]
) -> int:
    """Start an answer head from the pre-training head (LXMERT): matching rows, other rows zero.

    Returns:
        How many of ``answers`` had a row in ``known``, under LXMERT's normalisation.

    Raises:
        UserError: the two heads have different widths.
    """
    if head.dense.weight.shape != source.dense.weight.shape:
        raise UserError("The pre-training answer head has another width than the task's head.")
    row = {answer: index for index, answer in enumerate(known)}
    named = [normalize_answer(answer) for answer in answers]
    pairs = [(new, row[answer]) for new, answer in enumerate(named) if answer in row]
    with torch.no_grad():
        head.dense.load_state_dict(source.dense.state_dict())
        head.LayerNorm.load_state_dict(source.LayerNorm.state_dict())
        head.classifier.weight.zero_()
        head.classifier.bias.zero_()
        if pairs:
            to, origin = (torch.tensor(side) for side in zip(*pairs, strict=True))
            head.classifier.weight[to] = source.classifier.weight[origin]
            head.classifier.bias[to] = source.classifier.bias[origin]
    return len(pairs)


def model_folder(path: Path) -> Path:
    """The folder of the weights: that of a run, or the folder itself."""
    return path / "model" if (path / "model").is_dir() else path


def row_facts(
    config: GridVLPConfig, tokenizer: BertTokenizer, vocabulary: object, answers: object
) -> dict[str, dict[str, str]]:
    """What each row of the embedding and of the answer head stands for, as facts of a run.

    Args:
        config: of the model.
        tokenizer: of the model.
        vocabulary, answers: where they come from, to be named where they have changed.
    """
    names = json.dumps(list(config.answers or ()))
    return {
        "vocabulary": {"from": str(vocabulary), "sha256": vocabulary_digest(tokenizer)},
        "answers": {"from": str(answers), "sha256": hashlib.sha256(names.encode()).hexdigest()},
    }


def check_recipe(
    config: GridVLPConfig,
    store: FeatureStore,
    origin: str | Path,
    other: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Refuse maps of another recipe than that of the maps that the model was trained on.

    Args:
        config: the model's.
        store: the maps that it is to read.
        origin: names the model in an error.
        other: another recipe is wanted: say what differs and go on.
        say: called with that line.

    Raises:
        UserError: grids and regions differ, or the channels; or the recipes, unless ``other``.
    """
    ours, theirs = ("regions" if config.regions else "grids"), store.kind
    if ours != theirs:
        raise UserError(
            f"The model in {origin} was trained on {ours}; the store holds {theirs}. Give a store "
            f"of {ours}, or pre-train on {theirs}."
        )
    if config.grid_channels != store.channels:
        raise UserError(
            f"The model in {origin} reads grids of {config.grid_channels} channels; the store has "
            f"{store.channels}. Extract with the encoder that the model was pre-trained on."
        )
    if config.grid_recipe is not None:
        trained, read = config.grid_recipe, store.recipe
    elif config.grid_encoder is not None:  # a model of an earlier version
        trained = config.grid_encoder
        read = {name: store.encoder.get(name) for name in trained}
    else:
        return
    differences = recipe_differences(trained, read)
    if not differences:
        return
    text = (
        f"The model in {origin} was trained on maps of another recipe than the store's "
        f"({differences_text(differences)})"
    )
    if not other:
        raise UserError(
            f"{text}. Extract as those maps were made, or read these all the same with "
            "--other-recipe."
        )
    say(f"{text}: wanted, by --other-recipe.")
