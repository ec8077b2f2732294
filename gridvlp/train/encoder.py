"""How BERT's layers are run: attention on a CPU, and a last layer that does only what is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from transformers.models.bert.modeling_bert import BertCrossAttention, BertEncoder

from gridvlp.train import dropout as own

PLAIN, FUSED = "gridvlp_plain", "sdpa"


def plain_attention(
    module: nn.Module,
    query_BHSE: Tensor,
    key_BHSE: Tensor,
    value_BHSE: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as plain matrix products; transformers' eager form with the dropout of this room.

    Args:
        module: not used; transformers passes it.
        query_BHSE, key_BHSE, value_BHSE: H heads of width E.
        attention_mask: added to the scores, broadcast; None where nothing is padding.
        scaling: factor of the scores.
        dropout: probability with which a weight is dropped.

    Returns:
        context_BSHE, and None for the weights, which nobody reads.
    """
    scores_BHST = (query_BHSE * scaling) @ key_BHSE.transpose(-1, -2)
    if attention_mask is not None:
        scores_BHST = scores_BHST + attention_mask.to(scores_BHST.dtype)
    weights_BHST = own.dropout(scores_BHST.softmax(-1), dropout)
    return (weights_BHST @ value_BHSE).transpose(1, 2).contiguous(), None


AttentionInterface.register(PLAIN, plain_attention)


def use_own_dropout(model: nn.Module) -> None:
    """Put ``dropout.Dropout`` in the place of PyTorch's, in all submodules; it has no weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, own.Dropout(child.p))


def attention_mask(mask_BS: Tensor, implementation: str) -> Tensor | None:
    """A padding mask (bool, true where there is something) as the attention wants it."""
    if mask_BS.device.type == "cpu" and bool(mask_BS.all()):  # on a GPU asking would stall it
        return None
    mask_B11S = mask_BS[:, None, None, :]
    if implementation == FUSED:
        return mask_B11S
    return torch.where(mask_B11S, 0.0, torch.finfo(torch.bfloat16).min)


def encode(encoder: BertEncoder, embedded_BSD: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """The last hidden states of the first ``length`` places, text_BLD.

    Nothing reads those of the grids: the last layer takes its keys and values from all places and
    computes the rest for the text alone, which saves a twentieth of all operations.
    """
    layers: list[Any] = list(encoder.layer)
    last = layers.pop()
    hidden_BSD = embedded_BSD
    for layer in layers:
        hidden_BSD = layer(hidden_BSD, mask)
    text_BLD = hidden_BSD[:, :length]
    # BERT's cross attention has the weights of its self attention under the same names.
    context_BLD = BertCrossAttention.forward(last.attention.self, text_BLD, hidden_BSD, mask)[0]
    return last.feed_forward_chunk(last.attention.output(context_BLD, text_BLD))
