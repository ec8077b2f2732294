"""Pre-training (paper 3.3): masked words, image-text matching, image QA, random grid sampling.

gridvlp pretrain --features store.zarr
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertTokenizer

from gridvlp.errors import UserError
from gridvlp.run.folder import RunFolder
from gridvlp.store import FeatureStore
from gridvlp.train.answers import AnswerVocabulary
from gridvlp.train.batch import Losses
from gridvlp.train.corpus.corpus import Corpus
from gridvlp.train.corpus.order import EpochOrder
from gridvlp.train.grids import read_grids
from gridvlp.train.loop import fit
from gridvlp.train.model.checkpoints import load_config, row_facts, start_pretraining
from gridvlp.train.model.fusion import GridVLPConfig, GridVLPForPreTraining
from gridvlp.train.options import PreTrainingOptions, micro_batch_size
from gridvlp.train.processes import agree, first_only, make_accelerator, with_precision
from gridvlp.train.tokenization import (
    MAX_TOKENS,
    Encoder,
    corpus_tokenizer,
    load_tokenizer,
    vocabulary_size,
)

MASKED, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1  # BERT, LXMERT
MISMATCHED = 0.5  # LXMERT: the sentence is replaced by one of another image
NO_ANSWER = -100
HELD_OUT_SENTENCES = 2048


@dataclass
class PreTrainingBatch:
    """One micro-batch: model inputs and what the three objectives ask for."""

    inputs: dict[str, Tensor | None]
    masked_positions_M: Tensor
    masked_words_M: Tensor
    matched_B: Tensor
    answer_B: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> PreTrainingBatch:
        """The batch with its tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs={
                name: value if value is None else moved(value)
                for name, value in self.inputs.items()
            },
            masked_positions_M=moved(self.masked_positions_M),
            masked_words_M=moved(self.masked_words_M),
            matched_B=moved(self.matched_B),
            answer_B=moved(self.answer_B),
        )

    @property
    def terms(self) -> dict[str, int]:
        """Masked words, sentences, and matched questions with an answer."""
        return {
            "mlm": len(self.masked_words_M),
            "itm": len(self.matched_B),
            "qa": int((self.answer_B != NO_ANSWER).sum()),
        }


class PreTrainingBatches:
    """Makes the batch of a step: every (image, sentence) pair once an epoch, shuffled.

    The sentences of an image are dealt in groups of ``sentences_per_read``, which stay together,
    so that one read of a map serves a whole group. 1 is LXMERT's independent shuffling.

    Args:
        corpus: the pairs.
        store: the maps.
        encoder: sentences to ids.
        batch_size: sentences per step, over all processes and micro-batches.
        grids: random grids per image; None for all.
        sentences_per_read: sentences of an image that stay together.
        seed: decides order, negatives, masks, answers and grids.
        process, processes, accumulate: which part of a step's batch is made here, in how many
            micro-batches.
    """

    def __init__(
        self,
        corpus: Corpus,
        store: FeatureStore,
        encoder: Encoder,
        *,
        batch_size: int,
        grids: int | None,
        sentences_per_read: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.corpus, self.store, self.encoder = corpus, store, encoder
        self.batch_size, self.grids, self.seed = batch_size, grids, seed
        self.micro_size = micro_batch_size(batch_size, processes, accumulate)
        self.first, self.accumulate = process * accumulate, accumulate
        self.steps_per_epoch = -(-len(corpus) // batch_size)
        self.order = EpochOrder(corpus.offsets, sentences_per_read, seed)

    def __call__(self, step: int) -> list[PreTrainingBatch]:
        """The micro-batches of a step for this process."""
        epoch, index = divmod(step, self.steps_per_epoch)
        # The last batch of an epoch is filled up from the epoch's beginning.
        first = index * self.batch_size
        chosen_B = self.order.sentences(epoch, first, first + self.batch_size)
        rng = np.random.default_rng([self.seed, 2, step])
        draws = {
            "mismatch_B": rng.random(self.batch_size),
            "other_B": rng.integers(len(self.corpus), size=self.batch_size),
            "answer_B": rng.random(self.batch_size),
            "mask_BL": rng.random((self.batch_size, MAX_TOKENS)),
            "treatment_BL": rng.random((self.batch_size, MAX_TOKENS)),
            "word_BL": rng.random((self.batch_size, MAX_TOKENS)),
        }
        batches = []
        for part in range(self.first, self.first + self.accumulate):
            rows = slice(part * self.micro_size, (part + 1) * self.micro_size)
            batches.append(
                self.make(chosen_B[rows], {n: a[rows] for n, a in draws.items()}, [self.seed, step])
            )
        return batches

    def make(
        self, sentences_B: np.ndarray, draws: dict[str, np.ndarray], seed: list[int]
    ) -> PreTrainingBatch:
        """Build a batch from sentence numbers and uniform random draws."""
        images_B = self.corpus.images_of(sentences_B)
        images_I, image_index_B = np.unique(images_B, return_inverse=True)
        keys = [self.corpus.image_key(int(image)) for image in images_I]
        seen = read_grids(self.store, keys, self.grids, [*seed, 3])

        # A draw that falls on the same image cannot be a mismatch: the pair stays matched.
        mismatched_B = (draws["mismatch_B"] < MISMATCHED) & (
            self.corpus.images_of(draws["other_B"]) != images_B
        )
        spoken_B = np.where(mismatched_B, draws["other_B"], sentences_B)
        ids_BL, text_mask_BL, _ = self.encoder.encode(
            [self.corpus.sentence(int(sentence)) for sentence in spoken_B]
        )
        masked_BL, words_M = self._mask(ids_BL, text_mask_BL, draws)

        answer_B = np.full(len(sentences_B), NO_ANSWER, dtype=np.int64)
        for row in np.flatnonzero(~mismatched_B):
            ids, scores = self.corpus.answers_of(int(sentences_B[row]))
            if len(ids):
                point = draws["answer_B"][row] * scores.sum()
                answer_B[row] = ids[
                    min(np.searchsorted(np.cumsum(scores), point, "right"), len(ids) - 1)
                ]
        return PreTrainingBatch(
            inputs={
                "input_ids_BL": torch.from_numpy(ids_BL),
                "text_mask_BL": torch.from_numpy(text_mask_BL),
                **seen,
                "image_index_B": torch.from_numpy(image_index_B.reshape(-1)),
            },
            masked_positions_M=torch.from_numpy(np.flatnonzero(masked_BL)),
            masked_words_M=torch.from_numpy(words_M),
            matched_B=torch.from_numpy((~mismatched_B).astype(np.int64)),
            answer_B=torch.from_numpy(answer_B),
            keys=keys,
        )

    def _mask(
        self, ids_BL: np.ndarray, text_mask_BL: np.ndarray, draws: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask 15% of the words in place (80% [MASK], 10% random, 10% as they are)."""
        length = ids_BL.shape[1]
        special_BL = np.isin(ids_BL, self.encoder.tokenizer.all_special_ids)
        masked_BL = text_mask_BL & ~special_BL & (draws["mask_BL"][:, :length] < MASKED)
        words_M = ids_BL[masked_BL]
        treatment_M = draws["treatment_BL"][:, :length][masked_BL]
        random_M = (draws["word_BL"][:, :length][masked_BL] * self.encoder.size).astype(np.int64)
        ids_BL[masked_BL] = np.select(
            [treatment_M < TO_MASK, treatment_M < TO_MASK + TO_RANDOM],
            [np.full_like(words_M, self.encoder.mask), random_M],
            words_M,
        )
        return masked_BL, words_M


def losses(model: nn.Module, batch: PreTrainingBatch) -> Losses:
    """Summed cross-entropies of the three objectives; they are weighted equally (LXMERT)."""
    words_MV, match_B2, answers_BA = model(batch.inputs, batch.masked_positions_M)
    # A batch without a masked word or a question still goes through that head: processes that
    # train together must all have a gradient of every parameter.
    terms = batch.terms
    sums = {
        "mlm": functional.cross_entropy(words_MV.float(), batch.masked_words_M, reduction="sum"),
        "itm": functional.cross_entropy(match_B2.float(), batch.matched_B, reduction="sum"),
        "qa": functional.cross_entropy(
            answers_BA.float(), batch.answer_B, reduction="sum", ignore_index=NO_ANSWER
        )
        if answers_BA is not None
        else match_B2.new_zeros(()),
    }
    return {name: (value, terms[name]) for name, value in sums.items()}


def held_out_accuracy(
    model: nn.Module, batches: PreTrainingBatches, accelerator: Accelerator
) -> dict[str, float]:
    """Accuracy in percent of masked words, matching and answers on fixed held-out batches.

    Each process takes its part of each batch, and every one of them gets the whole's figures.
    """
    names = ("mlm", "itm", "qa")
    right, terms = torch.zeros(2, len(names), dtype=torch.int64, device=accelerator.device)
    steps = min(batches.steps_per_epoch, -(-HELD_OUT_SENTENCES // batches.batch_size))
    for step in range(steps):
        for made in batches(step):
            batch = made.to(accelerator.device)
            words_MV, match_B2, answers_BA = model(batch.inputs, batch.masked_positions_M)
            right[0] += (words_MV.argmax(-1) == batch.masked_words_M).sum()
            right[1] += (match_B2.argmax(-1) == batch.matched_B).sum()
            if answers_BA is not None:
                right[2] += (answers_BA.argmax(-1) == batch.answer_B).sum()
            terms += torch.tensor([batch.terms[name] for name in names], device=terms.device)
    counts = accelerator.reduce(torch.stack([right, terms]), "sum").tolist()
    return {
        f"held_out/{name}": 100 * correct / asked
        for name, correct, asked in zip(names, *counts, strict=True)
        if asked
    }


def pretrain(options: PreTrainingOptions, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Pre-train a fusion model on the maps of a store; resumes a run that was interrupted.

    Args:
        options: what to train and how.
        say: called with lines for the person at the keyboard.

    Returns:
        The held-out figures of the last epoch.

    Raises:
        UserError: something is missing or does not fit.
    """
    options = replace(options, training=with_precision(options.training))
    accelerator = make_accelerator(options.training.precision)
    say = first_only(say, accelerator)
    set_seed(options.training.seed)
    store = FeatureStore(options.features)
    answers = AnswerVocabulary.from_file(options.answers) if options.answers else None
    with accelerator.local_main_process_first():  # it writes the corpus's cache, others read it
        corpus, held_out = (
            Corpus.build(
                options.data,
                store,
                part=part,
                sources=options.sources,
                answers=answers,
                allow_leakage=options.allow_leakage,
            )
            for part in ("train", "held-out")
        )
    for line in describe(corpus, held_out):
        say(line)
    if not len(corpus):
        raise UserError(
            f"No sentence in {options.data} speaks of an image in "
            f"{', '.join(map(str, options.features))}: extract the photos of data/coco or data/vg "
            "with `gridvlp extract --images ...`, or give --data."
        )
    facts = {
        "corpus": corpus.fingerprint,
        "store": store.fingerprint,
        "encoder": store.encoder,
        "recipe": store.recipe,
        "sentences": len(corpus),
        "images": corpus.images,
        "held out": len(held_out),
        "sources": [asdict(row) for row in corpus.report],
        "leakage guard": [asdict(row) for row in corpus.exclusions],
    }
    with accelerator.local_main_process_first():  # it learns word pieces, others read them
        model, tokenizer, made = _make_model(options, store, corpus, say)
    facts |= made
    encoder = Encoder(tokenizer)
    for line in encoder.check(corpus.sentence, len(corpus)):
        say(line)
    common: dict[str, Any] = {
        "batch_size": options.training.batch_size,
        "grids": options.grids,
        "sentences_per_read": options.sentences_per_read,
        "process": accelerator.process_index,
        "processes": accelerator.num_processes,
        "accumulate": options.training.accumulate,
    }
    batches = PreTrainingBatches(
        corpus,
        store,
        encoder,
        **common,
        seed=options.training.seed,
    )
    checks = (
        PreTrainingBatches(held_out, store, encoder, **common, seed=0) if len(held_out) else None
    )
    with RunFolder(options.run, options.identity(), facts, accelerator.is_main_process) as run:
        if (finished := agree(run, accelerator)) is not None:
            say(f"{options.run} is finished already; give another --run to train again.")
            return finished
        return fit(
            model,
            encoder.tokenizer,
            batches,
            losses,
            steps_per_epoch=batches.steps_per_epoch,
            settings=options.training,
            run=run,
            accelerator=accelerator,
            validate=lambda m: held_out_accuracy(m, checks, accelerator) if checks else {},
            title="pretrain",
        )


def describe(corpus: Corpus, held_out: Corpus) -> list[str]:
    """The table of pairs and images per source, and what was left out, as lines."""
    columns = ("source", "pairs", "images", "questions", "no map", "guarded", "empty", "held out")
    held = {row.source: row.pairs for row in held_out.report}
    rows: list[tuple[Any, ...]] = [
        (
            row.source + (" (no files)" if not row.files else ""),
            *(row.pairs, row.images, row.questions, row.without_photo, row.excluded, row.empty),
            held.get(row.source, 0),
        )
        for row in corpus.report
    ]
    rows.append(("all", len(corpus), corpus.images, *["" for _ in range(4)], len(held_out)))
    lines = [f"{columns[0]:24}" + "".join(f"{name:>11}" for name in columns[1:])]
    for name, *values in rows:
        lines.append(f"{name:24}" + "".join(f"{v:>11,}" if v != "" else " " * 11 for v in values))
    for exclusion in corpus.exclusions:
        lines.append(
            f"Leakage guard: {exclusion.images:,} images, {exclusion.pairs:,} pairs: "
            f"{exclusion.rule}"
        )
    absent = sorted({path for row in corpus.report for path in row.absent})
    if absent:
        lines.append(f"Not there: {', '.join(absent)}")
    return lines + list(corpus.notes)


def _make_model(
    options: PreTrainingOptions, store: FeatureStore, corpus: Corpus, say: Callable[[str], object]
) -> tuple[GridVLPForPreTraining, BertTokenizer, dict[str, Any]]:
    """The model, its tokenizer, and the facts of both that a resumed run must share."""
    if options.init is not None:
        source = str(options.vocabulary or options.init)
        tokenizer = load_tokenizer(source, say)
        _check_init(options, tokenizer)
        changes: dict[str, Any] = {}
        if options.dropout is not None:
            changes["hidden_dropout_prob"] = options.dropout
            changes["attention_probs_dropout_prob"] = options.dropout
        model, fresh = start_pretraining(
            *(options.init, store, vocabulary_size(tokenizer), corpus.answers, say),
            other_recipe=options.other_recipe,
            **changes,
        )
        say(f"Weights from {options.init}; fresh: {', '.join(fresh) or 'nothing'}.")
    else:
        standard = options.data / "vocab" / "bert-base-uncased-vocab.txt"
        named = options.vocabulary or (standard if standard.exists() else None)
        if named is not None:
            tokenizer, source = load_tokenizer(named, say), str(named)
        else:
            tokenizer, source = corpus_tokenizer(corpus), "the corpus"
            say(f"Vocabulary: learned from the corpus, {len(tokenizer):,} pieces, lower-cased.")
        sizes = options.sizes
        config = GridVLPConfig(
            vocab_size=vocabulary_size(tokenizer),
            hidden_size=sizes["hidden_size"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=4 * sizes["hidden_size"],
            hidden_dropout_prob=sizes["dropout"],
            attention_probs_dropout_prob=sizes["dropout"],
            initializer_range=sizes["initializer_range"],
            grid_channels=store.channels,
            grid_recipe=store.recipe,
            regions=store.kind == "regions",
            answers=list(corpus.answers.names) if corpus.answers else None,
        )
        model = GridVLPForPreTraining(config)
        say("Encoder from scratch.")
    sizes = _sizes(model.config)
    parameters = sum(parameter.numel() for parameter in model.bert.parameters())
    say(
        f"Fusion model on {store.kind}: {parameters / 1e6:.1f}M parameters, "
        f"{len(model.config.answers or []):,} answers; "
        + ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sizes.items())
        + "."
    )
    answers = options.answers or ("the corpus" if corpus.answers else options.init)
    return model, tokenizer, {"sizes": sizes, **row_facts(model.config, tokenizer, source, answers)}


def _check_init(options: PreTrainingOptions, tokenizer: BertTokenizer) -> None:
    """Refuse options that contradict the checkpoint: its sizes, and what its rows stand for.

    Raises:
        UserError: an option was named and differs.
    """
    folder = str(options.init)
    sizes = _sizes(load_config(folder))
    for name, value in sizes.items():
        chosen = getattr(options, name)
        if chosen not in (None, value) and name != "dropout":
            raise UserError(
                f"--{name.replace('_', '-')} {chosen}: the checkpoint {folder} has {value}, and "
                "the checkpoint decides. Leave the option out, or train from scratch without "
                "--init."
            )
    if options.vocabulary is None:
        return
    try:
        own = load_tokenizer(folder)
    except UserError:  # weights alone: the vocabulary is that which is named
        return
    ours, theirs = (
        {id: piece for piece, id in one.get_vocab().items()} for one in (tokenizer, own)
    )
    other = next((id for id in sorted(ours | theirs) if ours.get(id) != theirs.get(id)), None)
    if other is not None:
        raise UserError(
            f"--vocabulary {options.vocabulary} is not the vocabulary of {folder}: id {other} is "
            f"{ours.get(other)!r}, there {theirs.get(other)!r}. Leave --vocabulary out."
        )


def _sizes(config: GridVLPConfig) -> dict[str, Any]:
    """The sizes of a model by the names of the options."""
    return {
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "dropout": config.hidden_dropout_prob,
        "initializer_range": config.initializer_range,
    }
