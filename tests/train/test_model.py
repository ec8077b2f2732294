import pytest
import torch
from transformers import BertConfig, BertModel

from gridvlp.errors import UserError
from gridvlp.train.checkpoints import copy_answer_rows, load_model
from gridvlp.train.encoder import PLAIN
from gridvlp.train.model import (
    AnswerHead,
    GridVLPConfig,
    GridVLPForAnswering,
    GridVLPForPairs,
    GridVLPForPreTraining,
    GridVLPModel,
)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def small_config(**changes):
    return GridVLPConfig(**SMALL, grid_channels=16, answers=["yes", "no", "red"], **changes)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids_BL": torch.randint(5, 50, (3, 6), generator=generator),
        "text_mask_BL": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]]).bool(),
        "grids_IGC": torch.rand(2, 7, 16, generator=generator),
        "grid_mask_IG": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]).bool(),
        "image_index_B": torch.tensor([0, 1, 1]),
    }


def test_the_default_is_bert_base_with_110m_parameters():
    with torch.device("meta"):
        model = GridVLPModel(GridVLPConfig())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(110e6, rel=0.015)


def test_without_grids_it_is_berts_own_model(tmp_path):
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SMALL)).eval()
    bert.save_pretrained(tmp_path)
    ours, fresh = load_model(GridVLPModel, tmp_path, new=("grid_projection.",), grid_channels=16)
    assert fresh == ["grid_projection.bias", "grid_projection.weight"]
    given = inputs()
    with torch.no_grad():
        theirs = bert(given["input_ids_BL"], attention_mask=given["text_mask_BL"].long())
        text_BLD, pooled_BD = ours.eval()(given["input_ids_BL"], given["text_mask_BL"])
    mask = given["text_mask_BL"]
    torch.testing.assert_close(text_BLD[mask], theirs.last_hidden_state[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled_BD, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_grids_are_a_set_and_padding_is_invisible():
    model = GridVLPModel(small_config()).eval()
    given = inputs()
    with torch.no_grad():
        _, pooled_BD = model(**given)
        order = torch.randperm(5)
        alone = {
            "input_ids_BL": given["input_ids_BL"][1:2, :4],
            "text_mask_BL": given["text_mask_BL"][1:2, :4],
            "grids_IGC": given["grids_IGC"][1:2, :5][:, order],
        }
        _, alone_BD = model(**alone)
    torch.testing.assert_close(pooled_BD[1:2], alone_BD, atol=1e-5, rtol=1e-5)


def test_plain_and_fused_attention_agree():
    model = GridVLPModel(small_config()).eval()
    with torch.no_grad():
        fast = model(**inputs())[1]
        model.set_attn_implementation(PLAIN)
        plain = model(**inputs())[1]
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_masked_words_are_predicted_at_their_flat_positions():
    model = GridVLPForPreTraining(small_config()).eval()
    given = inputs()
    with torch.no_grad():
        words_MV, match_B2, answers_BA = model(given, torch.tensor([1, 6 + 2]))
        everywhere_NV, _, _ = model(given, torch.arange(18))
    torch.testing.assert_close(words_MV, everywhere_NV[[1, 8]])
    assert (words_MV.shape, match_B2.shape, answers_BA.shape) == ((2, 50), (3, 2), (3, 3))
    decoder = model.cls.predictions.decoder.weight
    assert decoder is model.bert.embeddings.word_embeddings.weight


def test_swapping_the_images_of_a_pair_swaps_the_halves():
    config = small_config()
    model = GridVLPForPairs(config).eval()
    given = inputs()
    pair = {**given, "image_index_B": torch.tensor([0, 0, 1])}
    # Three sentences: the first two are one pair's left and right side only when doubled.
    doubled = {
        "input_ids_BL": given["input_ids_BL"][:1].repeat(2, 1),
        "text_mask_BL": given["text_mask_BL"][:1].repeat(2, 1),
        "grids_IGC": pair["grids_IGC"],
        "grid_mask_IG": pair["grid_mask_IG"],
        "image_index_B": torch.tensor([0, 1]),
    }
    with torch.no_grad():
        one = model(doubled)
        other = model({**doubled, "image_index_B": torch.tensor([1, 0])})
        pooled_2D = model.bert(**doubled)[1]
        expected = model.answering(pooled_2D.reshape(1, -1))
    assert one.shape == (1, 3)
    torch.testing.assert_close(one, expected)
    assert not torch.allclose(one, other)


def test_saved_weights_come_back_and_misfits_are_named(tmp_path):
    model = GridVLPForAnswering(small_config(grid_encoder={"name": "x50"}))
    model.save_pretrained(tmp_path)
    back, fresh = load_model(GridVLPForAnswering, tmp_path)
    assert fresh == []
    assert back.config.answers == ["yes", "no", "red"]
    assert back.config.grid_encoder == {"name": "x50"}
    for (name, one), other in zip(
        model.state_dict().items(), back.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    with pytest.raises(UserError, match=r"do not fit GridVLPForPreTraining: \d+ keys \(cls"):
        load_model(GridVLPForPreTraining, tmp_path)
    with pytest.raises(UserError, match=r"answering\.classifier"):
        load_model(GridVLPForAnswering, tmp_path, answers=["yes"])
    with pytest.raises(UserError, match="holds no model"):
        load_model(GridVLPForAnswering, tmp_path / "nothing")


def test_answer_rows_are_copied_by_name_and_others_are_zero():
    source, head = AnswerHead(8, 16, 3), AnswerHead(8, 16, 4)
    copied = copy_answer_rows(head, ["blue", "red", "no", "cat"], source, ["no", "yes", "red"])
    assert copied == 2
    torch.testing.assert_close(head.classifier.weight[1], source.classifier.weight[2])
    torch.testing.assert_close(head.classifier.bias[2], source.classifier.bias[0])
    assert head.classifier.weight[[0, 3]].abs().sum() == 0
    with pytest.raises(UserError, match="another width"):
        copy_answer_rows(AnswerHead(8, 8, 4), ["a"] * 4, source, ["no"])
