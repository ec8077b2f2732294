"""The fusion model of Grid-VLP (paper, section 3): words and grids in one BERT encoder.

Shape legend, used in every name of this room:

    B sentences in a batch   I images in a batch    L text tokens  G grids of an image
    S = L + G, the sequence  C channels of a grid   D hidden size  V word pieces  A answers

A batch holds fewer images than sentences when several sentences speak of one image:
``image_index_B`` says which image each sentence looks at, so that a map is projected once however
often it is used. Where a sentence looks at several images at once it is ``image_index_BN``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertOnlyMLMHead,
    BertPooler,
    BertPreTrainedModel,
)

from gridvlp.train.model.bert_layers import FUSED, PLAIN, adapt, attention_mask, encode

TEXT_MODALITY, IMAGE_MODALITY = 0, 1


@strict
class GridVLPConfig(BertConfig):
    """BERT's configuration (BERT-base sizes by default) with what the image side adds.

    ``type_vocab_size`` counts the modalities: text is 0 (BERT's sentence A), image is 1, the
    second of two images that share a sequence 2.
    ``answers`` are the class names of the answer head, in the order of its rows;
    ``grid_recipe`` is the recipe of the maps that the model was trained on (gridvlp.store.recipe);
    older models have ``grid_encoder``, the name and weights of the encoder alone. ``regions`` says
    that the maps are regions with boxes and not grids. ``image_modalities`` counts the modalities
    of a pair's images in ``GridVLPForPairAttention``: 2, or 1 in models of older versions.
    """

    model_type = "gridvlp"

    grid_channels: int = 2048
    answers: list[str] | None = None
    grid_recipe: dict[str, Any] | None = None
    grid_encoder: dict[str, Any] | None = None
    regions: bool = False
    image_modalities: int = 1


class GridVLPModel(BertPreTrainedModel):
    """Encoder over ``[CLS] w1..wm [SEP] g1..gn`` (paper, 3.2 and 3.3).

    A word is token + position + modality embedding, layer-normalised, as in BERT. A grid is
    Linear(C -> D) + modality embedding; it has no position, so that any subset of grids is valid
    input. A region (``config.regions``) has a place: Linear(5 -> D) of its box's x1, y1, x2, y2 and
    area, as fractions of the photo's, is added (ViLBERT, Lu et al. 2019). Without grids this is
    transformers' BertModel.
    """

    config_class = GridVLPConfig
    base_model_prefix = "bert"
    config: GridVLPConfig

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.grid_projection = nn.Linear(config.grid_channels, config.hidden_size)
        self.box_projection = nn.Linear(5, config.hidden_size) if config.regions else None
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        adapt(self)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings (V, D)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings (V, D)."""
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids_BL: Tensor,
        text_mask_BL: Tensor,
        grids_IGC: Tensor | None = None,
        grid_mask_IG: Tensor | None = None,
        image_index_B: Tensor | None = None,
        boxes_IG4: Tensor | None = None,
        modality_B: Tensor | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Fuse sentences with the grids of their images.

        Args:
            input_ids_BL: int64 word-piece ids, padded.
            text_mask_BL: bool, true where there is a token.
            grids_IGC: floating-point grid features, padded; None for text alone.
            grid_mask_IG: bool, true where there is a grid.
            image_index_B: int64, the image of each sentence; None when I = B, in order. With shape
                (B, N) each sentence is followed by the grids of its N images in turn, each with a
                modality of its own.
            boxes_IG4: float, x1, y1, x2, y2 of regions from 0 to 1; None of grids.
            modality_B: int64, the modality of each sentence's image; None for 1 everywhere.
            whole: give the last hidden states of the grids, too, behind those of the words.

        Returns:
            text_BLD, the last hidden states of the words, and pooled_BD, the pooled [CLS].
        """
        embedded_BSD = self.embeddings(input_ids_BL)
        mask_BS = text_mask_BL
        if grids_IGC is not None:
            if grid_mask_IG is None:
                grid_mask_IG = grids_IGC.new_ones(grids_IGC.shape[:2], dtype=torch.bool)
            image_IGD = self._project(grids_IGC, boxes_IG4)
            modality_TD = self.embeddings.token_type_embeddings.weight
            if image_index_B is not None and image_index_B.ndim == 2:
                count = image_index_B.shape[1]
                image_BNGD = image_IGD[image_index_B] + modality_TD[
                    IMAGE_MODALITY : IMAGE_MODALITY + count
                ].unsqueeze(1)
                image_IGD = self.embeddings.dropout(image_BNGD.flatten(1, 2))
                grid_mask_IG = grid_mask_IG[image_index_B].flatten(1)
            elif modality_B is not None:
                assert image_index_B is not None, "which sentence has which image"
                image_BGD = image_IGD[image_index_B] + modality_TD[modality_B].unsqueeze(1)
                image_IGD = self.embeddings.dropout(image_BGD)
                grid_mask_IG = grid_mask_IG[image_index_B]
            else:
                image_IGD = self.embeddings.dropout(image_IGD + modality_TD[IMAGE_MODALITY])
                if image_index_B is not None:
                    image_IGD, grid_mask_IG = image_IGD[image_index_B], grid_mask_IG[image_index_B]
            embedded_BSD = torch.cat([embedded_BSD, image_IGD.to(embedded_BSD.dtype)], dim=1)
            mask_BS = torch.cat([text_mask_BL, grid_mask_IG], dim=1)
        mask = attention_mask(mask_BS, self.config._attn_implementation)
        length = embedded_BSD.shape[1] if whole else input_ids_BL.shape[1]
        hidden_BLD = encode(self.encoder, embedded_BSD, mask, length)
        return hidden_BLD, self.pooler(hidden_BLD)

    def _project(self, grids_IGC: Tensor, boxes_IG4: Tensor | None) -> Tensor:
        image_IGD = self.grid_projection(grids_IGC.to(self.grid_projection.weight.dtype))
        if self.box_projection is None:
            return image_IGD
        assert boxes_IG4 is not None, "regions come with their boxes"
        x1, y1, x2, y2 = boxes_IG4.unbind(-1)
        place_IG5 = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], dim=-1)
        return image_IGD + self.box_projection(place_IG5.to(self.box_projection.weight.dtype))


class AnswerHead(nn.Module):
    """LXMERT's answer head: Linear(D, 2D), GELU, LayerNorm, Linear(2D, A)."""

    def __init__(self, input_size: int, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.classifier = nn.Linear(hidden_size, classes)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits_BA of the classes."""
        return self.classifier(self.LayerNorm(nn.functional.gelu(self.dense(pooled_BD))))


class GridVLPForPreTraining(BertPreTrainedModel):
    """The three pre-training heads of the paper (3.3): masked words, matching, image QA."""

    config_class = GridVLPConfig
    base_model_prefix = "bert"
    config: GridVLPConfig
    _tied_weights_keys = {  # noqa: RUF012 - transformers reads a plain class attribute
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__(config)
        self.bert = GridVLPModel(config)
        self.cls = BertOnlyMLMHead(config)
        self.matching = nn.Linear(config.hidden_size, 2)
        self.answering = (
            AnswerHead(config.hidden_size, 2 * config.hidden_size, len(config.answers))
            if config.answers
            else None
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The word prediction layer, tied to the word embeddings."""
        return self.cls.predictions.decoder

    def forward(
        self, inputs: dict[str, Tensor | None], masked_positions_M: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predict masked words, match and answer.

        Args:
            inputs: the arguments of ``GridVLPModel.forward``.
            masked_positions_M: int64, flat positions b * L + l of the masked words; only their
                logits are computed.

        Returns:
            word_logits_MV, match_logits_B2, and answer_logits_BA (None without an answer head).
        """
        text_BLD, pooled_BD = self.bert(**inputs)
        word_logits_MV = self.cls(text_BLD.flatten(0, 1)[masked_positions_M])
        answer_logits_BA = self.answering(pooled_BD) if self.answering is not None else None
        return word_logits_MV, self.matching(pooled_BD), answer_logits_BA


class GridVLPForAnswering(BertPreTrainedModel):
    """One sentence, its image or images in one sequence, one of ``config.answers``.

    VQA v2 and GQA; and the *triplet* head of NLVR2 (UNITER), where a sentence is followed by both
    images, each with a modality of its own.
    """

    config_class = GridVLPConfig
    base_model_prefix = "bert"
    config: GridVLPConfig

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__(config)
        self.bert = GridVLPModel(config)
        self.answering = AnswerHead(
            config.hidden_size, 2 * config.hidden_size, len(config.answers or [])
        )
        self.post_init()

    def forward(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """Logits_BA of the answers; ``inputs`` are the arguments of ``GridVLPModel.forward``."""
        return self.answering(self.bert(**inputs)[1])


class GridVLPForPairs(BertPreTrainedModel):
    """One sentence, two images, one of ``config.answers`` (NLVR2).

    The *pair* head of LXMERT and UNITER: (sentence, left) and (sentence, right) are encoded
    apart; the two pooled vectors are concatenated and classified.
    """

    config_class = GridVLPConfig
    base_model_prefix = "bert"
    config: GridVLPConfig

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__(config)
        self.bert = GridVLPModel(config)
        width = 2 * config.hidden_size
        self.answering = AnswerHead(width, width, len(config.answers or []))
        self.post_init()

    def forward(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """Logits_BA; ``inputs`` hold each sentence twice: all left images, then all right ones."""
        pooled_2BD = self.bert(**inputs)[1]
        left_BD, right_BD = pooled_2BD.chunk(2)
        return self.answering(torch.cat([left_BD, right_BD], dim=-1))


class PairHead(nn.Module):
    """UNITER's head for two sequences (Chen et al. 2020, appendix on NLVR2).

    Each sequence attends to the other; what it found and what it was are merged by a linear layer
    with ReLU and pooled with learned attention; the two pooled vectors are classified.
    """

    def __init__(self, config: GridVLPConfig, classes: int) -> None:
        super().__init__()
        size, dropout = config.hidden_size, config.attention_probs_dropout_prob
        self.to_right, self.to_left = (
            nn.MultiheadAttention(size, config.num_attention_heads, dropout, batch_first=True)
            for _ in range(2)
        )
        self.merge = nn.Sequential(
            nn.Linear(2 * size, size), nn.ReLU(), nn.Dropout(config.hidden_dropout_prob)
        )
        self.weigh = nn.Sequential(nn.Linear(size, 1), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * size, classes)

    def forward(
        self, left_BSD: Tensor, left_mask_BS: Tensor, right_BSD: Tensor, right_mask_BS: Tensor
    ) -> Tensor:
        """Logits_BA of the classes; masks are true where there is a word or a grid."""
        found_left_BSD, _ = self.to_right(
            left_BSD, right_BSD, right_BSD, key_padding_mask=~right_mask_BS, need_weights=False
        )
        found_right_BSD, _ = self.to_left(
            right_BSD, left_BSD, left_BSD, key_padding_mask=~left_mask_BS, need_weights=False
        )
        pooled = [
            self._pool(self.merge(torch.cat([found_BSD, own_BSD], dim=-1)), mask_BS)
            for found_BSD, own_BSD, mask_BS in (
                (found_left_BSD, left_BSD, left_mask_BS),
                (found_right_BSD, right_BSD, right_mask_BS),
            )
        ]
        return self.classifier(torch.cat(pooled, dim=-1))

    def _pool(self, merged_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        score_BS = self.weigh(merged_BSD).squeeze(-1).masked_fill(~mask_BS, -1e4)
        weight_BS = self.dropout(score_BS.softmax(-1))
        return (weight_BS.unsqueeze(1) @ merged_BSD).squeeze(1)


class GridVLPForPairAttention(BertPreTrainedModel):
    """As GridVLPForPairs, with UNITER's *pair with attention* between the two sequences.

    The left images have modality 1 and the right ones 2, as in UNITER (``img_type_ids`` of
    ``Nlvr2PairedDataset``); with ``config.image_modalities`` of 1 all have 1.
    """

    config_class = GridVLPConfig
    base_model_prefix = "bert"
    config: GridVLPConfig

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__(config)
        self.bert = GridVLPModel(config)
        self.answering = PairHead(config, len(config.answers or []))
        self.post_init()

    def forward(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """Logits_BA; ``inputs`` hold each sentence twice: all left images, then all right ones."""
        modality_B = None
        if self.config.image_modalities == 2:
            index_B = inputs["image_index_B"]
            assert index_B is not None
            right_B = torch.arange(len(index_B), device=index_B.device) >= len(index_B) // 2
            modality_B = IMAGE_MODALITY + right_B.long()
        hidden_BSD, _ = self.bert(**inputs, modality_B=modality_B, whole=True)
        left_BSD, right_BSD = hidden_BSD.chunk(2)
        text_mask, grid_mask = inputs["text_mask_BL"], inputs["grid_mask_IG"]
        assert text_mask is not None
        assert grid_mask is not None
        mask = torch.cat([text_mask, grid_mask[inputs["image_index_B"]]], dim=1)
        left_mask_BS, right_mask_BS = mask.chunk(2)
        return self.answering(left_BSD, left_mask_BS, right_BSD, right_mask_BS)


TaskModel = GridVLPForAnswering | GridVLPForPairs | GridVLPForPairAttention
TASK_MODELS: dict[str, type[TaskModel]] = {
    "answer": GridVLPForAnswering,
    "pair": GridVLPForPairs,
    "triplet": GridVLPForAnswering,
    "pair-attention": GridVLPForPairAttention,
}


def freeze_unused(model: PreTrainedModel) -> None:
    """Leave out of training what no gradient reaches.

    Processes that train together wait for a gradient of every parameter that is trained. The pooler
    stays in the model for those that start from it.
    """
    if isinstance(model, GridVLPForPairAttention):
        model.bert.pooler.requires_grad_(False)


def choose_attention(model: PreTrainedModel, device: torch.device) -> None:
    """Plain matrix products on a CPU, where they train faster than PyTorch's fused attention at
    the lengths of this model (docs/history.md); the fused one elsewhere.
    """
    chosen = PLAIN if device.type == "cpu" else FUSED
    model.set_attn_implementation(chosen)
    # transformers only warns, and does nothing, where a module's own class is named ...Attention
    assert model.config._attn_implementation == chosen
