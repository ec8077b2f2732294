"""The encoder against transformers' own way through the same weights."""

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from gridvlp.train.model.bert_layers import FUSED, PLAIN, adapt, attention_mask, encode

LENGTH = 4


def make(implementation, dropout=0.0):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config._attn_implementation = implementation
    encoder = BertEncoder(config)
    if implementation != "eager":
        adapt(encoder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return encoder


def reference(hidden_BSD, mask_BS):
    """transformers' eager encoder over all places, and the gradients of the same sum."""
    encoder = make("eager")
    additive = torch.where(mask_BS, 0.0, -1e30)[:, None, None, :]
    return encoder, encoder(hidden_BSD, attention_mask=additive).last_hidden_state[:, :LENGTH]


@pytest.mark.parametrize("implementation", [PLAIN, FUSED])
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients_are_transformers_own(implementation, padded):
    torch.manual_seed(1)
    hidden_BSD = torch.randn(2, 9, 32)
    mask_BS = torch.ones(2, 9, dtype=torch.bool)
    mask_BS[1, 6:] = not padded
    weights_BLD = torch.randn(2, LENGTH, 32)
    theirs, expected_BLD = reference(hidden_BSD, mask_BS)
    ours = make(implementation)
    text_BLD = encode(ours, hidden_BSD, attention_mask(mask_BS, implementation), LENGTH)
    torch.testing.assert_close(text_BLD, expected_BLD, atol=1e-5, rtol=1e-5)
    (text_BLD * weights_BLD).sum().backward()
    (expected_BLD * weights_BLD).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_dropout_is_replaced_everywhere_and_used_in_training_alone():
    encoder = make(PLAIN, dropout=0.5)
    kinds = {type(m).__module__ for m in encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert kinds == {"gridvlp.train.model.dropout"}
    assert encoder.state_dict().keys() == make("eager").state_dict().keys()
    hidden_BSD = torch.randn(2, 6, 32)
    with torch.no_grad():
        first, second = (encode(encoder.train(), hidden_BSD, None, 2) for _ in range(2))
        assert not first.equal(second)
        _, expected_BLD = reference(hidden_BSD, torch.ones(2, 6, dtype=torch.bool))
        still_BLD = encode(encoder.eval(), hidden_BSD, None, 2)
    torch.testing.assert_close(still_BLD, expected_BLD[:, :2], atol=1e-5, rtol=1e-5)


def test_a_mask_of_half_precision_leaves_padding_out():
    encoder = make(PLAIN)
    hidden_BSD = torch.randn(1, 6, 32)
    mask_BS = torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = encode(encoder, hidden_BSD, attention_mask(mask_BS, PLAIN), 2)
        cut = encode(encoder, hidden_BSD[:, :4], None, 2)
    torch.testing.assert_close(whole.float(), cut.float(), atol=0.03, rtol=0.03)
