"""Weights from folders into models: strictly, and only for maps of the encoder they know."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from transformers.utils import logging as transformers_logging

from gridvlp.errors import UserError
from gridvlp.store import FeatureStore
from gridvlp.train.answers import normalize_answer
from gridvlp.train.model import AnswerHead, GridVLPConfig

transformers_logging.disable_progress_bar()  # these models load and save in a moment

Model = TypeVar("Model", bound=BertPreTrainedModel)


def load_model(
    kind: type[Model],
    folder: str | Path,
    *,
    new: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    **changes: Any,
) -> tuple[Model, list[str]]:
    """Load weights strictly: every key must be used and none may be missing.

    Args:
        kind: the model class to build.
        folder: a folder in the transformers layout (or a hub name), ours or any BERT's.
        new: key prefixes that may be absent from the file and start fresh (a head).
        unused: key prefixes of the file that the model may leave aside (another task's head).
        changes: configuration values that replace those of the file.

    Returns:
        The model and the sorted names of the parameters that started fresh.

    Raises:
        UserError: the folder holds no model, or a key is missing, unexpected or misshaped.
    """
    quiet = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what did not fit is said below, in one sentence
    try:
        config = GridVLPConfig.from_pretrained(folder)
        for name, value in changes.items():
            setattr(config, name, value)
        loaded: Any = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        )
        model, info = loaded
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} holds no model that can be loaded: {reason}") from error
    finally:
        transformers_logging.set_verbosity(quiet)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    fresh = set(info["missing_keys"]) | set(mismatched)
    missing = sorted(key for key in fresh if not key.startswith(new))
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith(unused))
    if missing or unexpected:
        raise UserError(
            f"The weights in {folder} do not fit {kind.__name__}: "
            f"{_some(missing)} missing or of another shape, {_some(unexpected)} unexpected. "
            "Use weights made by the command before this one, or train anew."
        )
    return model, sorted(fresh)


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


def encoder_identity(store: FeatureStore) -> dict[str, Any]:
    """What must be the same in every store that a model reads: the encoder and its weights."""
    return {name: store.encoder.get(name) for name in ("name", "weights_sha256")}


def check_encoder(config: GridVLPConfig, store: FeatureStore, origin: Path) -> None:
    """Refuse maps of another encoder than the one that the model was trained on.

    Raises:
        UserError: the encoders or their channels differ.
    """
    if config.grid_channels != store.channels:
        raise UserError(
            f"The model in {origin} reads grids of {config.grid_channels} channels; the store has "
            f"{store.channels}. Extract with the encoder that the model was pre-trained on."
        )
    if config.grid_encoder not in (None, encoder_identity(store)):
        raise UserError(
            f"The model in {origin} was trained on maps of another encoder "
            f"({config.grid_encoder}) than the store's ({encoder_identity(store)})."
        )
