"""How BERT's layers are run: attention on a CPU, and a last layer that does only what is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.bert.modeling_bert import BertEncoder, BertSelfAttention

from gridvlp.train.model import dropout as own

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


class SelfAttention(BertSelfAttention):
    """BERT's self attention with one product for queries, keys and values, and its weights."""

    def forward(  # type: ignore[override]  # what transformers passes besides is for decoders
        self,
        hidden_BSD: Tensor,
        attention_mask: Tensor | None = None,
        length: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """What the first ``length`` places (all, if None) read from all places, context_BLD."""
        if length in (None, hidden_BSD.shape[1]):
            query, key, value = self._heads(hidden_BSD, self.query, self.key, self.value)
        else:
            (query,) = self._heads(hidden_BSD[:, :length], self.query)
            key, value = self._heads(hidden_BSD, self.key, self.value)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, plain_attention
        )
        dropped = self.dropout.p if self.training else 0.0
        context_BLHE, _ = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropped
        )
        return context_BLHE.flatten(2), None

    def _heads(self, hidden_BSD: Tensor, *parts: nn.Linear) -> tuple[Tensor, ...]:
        """The places through each of ``parts``, as (B, H, S, E) each."""
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        joined_BSX = nn.functional.linear(hidden_BSD, weight, bias)
        split_BSPHE = joined_BSX.unflatten(-1, (len(parts), self.num_attention_heads, -1))
        return split_BSPHE.permute(2, 0, 3, 1, 4).unbind()


def adapt(model: nn.Module) -> None:
    """Give a model of BERT's modules the attention and the dropout of this room.

    No weight changes its name. To be called before weights are loaded or initialised.
    """
    for module in model.modules():  # goes on into what is put in here
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, own.Dropout(child.p))
            elif type(child) is BertSelfAttention:
                setattr(module, name, SelfAttention(child.config, layer_idx=child.layer_idx))


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
    context_BLD, _ = last.attention.self(hidden_BSD, mask, length)
    return last.feed_forward_chunk(last.attention.output(context_BLD, text_BLD))
