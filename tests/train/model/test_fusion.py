import json

import pytest
import torch
from transformers import BertConfig, BertModel

from gridvlp.errors import UserError
from gridvlp.train.model.bert_layers import PLAIN
from gridvlp.train.model.checkpoints import copy_answer_rows, load_model
from gridvlp.train.model.fusion import (
    AnswerHead,
    GridVLPConfig,
    GridVLPForAnswering,
    GridVLPForPairAttention,
    GridVLPForPairs,
    GridVLPForPreTraining,
    GridVLPModel,
    choose_attention,
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


@pytest.mark.parametrize("kind", [GridVLPForPreTraining, GridVLPForAnswering, GridVLPForPairs])
def test_a_cpu_trains_with_plain_products(kind):
    model = kind(small_config())
    choose_attention(model, torch.device("cpu"))
    assert model.bert.config._attn_implementation == PLAIN
    assert model.bert.encoder.layer[0].attention.self.config._attn_implementation == PLAIN


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


def test_a_regions_box_matters_and_its_order_does_not():
    torch.manual_seed(0)
    model = GridVLPModel(small_config(regions=True)).eval()
    given = inputs()
    corners = torch.rand(2, 7, 2, 2, generator=torch.Generator().manual_seed(1)).sort(dim=2).values
    boxes_IG4 = corners.flatten(2)
    order = torch.randperm(7)
    alone = {"input_ids_BL": given["input_ids_BL"][:1], "text_mask_BL": given["text_mask_BL"][:1]}
    grids_IGC = given["grids_IGC"][:1]
    with torch.no_grad():
        _, one = model(**alone, grids_IGC=grids_IGC, boxes_IG4=boxes_IG4[:1])
        _, other = model(**alone, grids_IGC=grids_IGC[:, order], boxes_IG4=boxes_IG4[:1, order])
        _, moved = model(**alone, grids_IGC=grids_IGC, boxes_IG4=boxes_IG4[:1] / 2)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, moved, atol=1e-5)


def test_two_images_in_one_sequence_have_a_modality_each():
    torch.manual_seed(0)
    model = GridVLPForAnswering(small_config(type_vocab_size=3)).eval()
    given = {**inputs(), "image_index_B": torch.tensor([[0, 1], [1, 0], [1, 1]])}
    with torch.no_grad():
        plain = model(given)
        given["image_index_B"] = given["image_index_B"].flip(1)
        swapped = model(given)
        modality_TD = model.bert.embeddings.token_type_embeddings.weight
        modality_TD[2] = modality_TD[1]
        same = model(given)
        given["image_index_B"] = given["image_index_B"].flip(1)
        flipped = model(given)
    assert not torch.allclose(plain[:2], swapped[:2], atol=1e-4)
    torch.testing.assert_close(plain[2], swapped[2])
    torch.testing.assert_close(same, flipped, atol=1e-5, rtol=1e-5)


def test_attention_between_a_pair_is_blind_to_padding():
    torch.manual_seed(0)
    model = GridVLPForPairAttention(small_config()).eval()
    given = inputs()
    pair = {
        "input_ids_BL": given["input_ids_BL"][[1, 1]],
        "text_mask_BL": given["text_mask_BL"][[1, 1]],
        "grids_IGC": given["grids_IGC"],
        "grid_mask_IG": given["grid_mask_IG"],
        "image_index_B": torch.tensor([0, 1]),
    }
    with torch.no_grad():
        one = model(pair)
        noisy = {**pair, "grids_IGC": pair["grids_IGC"].clone()}
        noisy["grids_IGC"][1, 5:] = 100.0  # behind the mask
        noisy["input_ids_BL"] = pair["input_ids_BL"].clone()
        noisy["input_ids_BL"][:, 4:] = 7
        other = model(noisy)
        swapped = model({**pair, "image_index_B": torch.tensor([1, 0])})
    assert one.shape == (1, 3)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, swapped, atol=1e-4)


def pair_of(given):
    return {
        "input_ids_BL": given["input_ids_BL"][[0, 0]],
        "text_mask_BL": given["text_mask_BL"][[0, 0]],
        "grids_IGC": given["grids_IGC"],
        "grid_mask_IG": given["grid_mask_IG"],
        "image_index_B": torch.tensor([0, 1]),
    }


def test_attention_between_a_pair_knows_left_from_right_by_modality():
    torch.manual_seed(0)
    model = GridVLPForPairAttention(small_config(type_vocab_size=3, image_modalities=2)).eval()
    given = pair_of(inputs())
    modality_TD = model.bert.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        before = model(given)
        modality_TD[2] += 1
        changed = model(given)
        modality_TD[2] = modality_TD[1]
        alike = model(given)
        model.config.image_modalities = 1
        older = model(given)
    assert not torch.allclose(before, changed, atol=1e-4)
    torch.testing.assert_close(alike, older)


def test_a_model_of_an_older_version_gives_a_pair_one_modality(tmp_path):
    torch.manual_seed(0)
    model = GridVLPForPairAttention(small_config()).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_modalities"]  # which older versions do not know
    (tmp_path / "config.json").write_text(json.dumps(config))
    back, fresh = load_model(GridVLPForPairAttention, tmp_path)
    assert fresh == []
    assert back.config.image_modalities == 1
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(pair_of(inputs())), model(pair_of(inputs())))


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
    with pytest.raises(UserError, match="holds no model"):
        load_model(GridVLPForAnswering, tmp_path / "nothing")


def test_answer_rows_positions_and_modalities_of_other_sizes_are_kept_as_far_as_they_go(tmp_path):
    model = GridVLPForAnswering(small_config(max_position_embeddings=24))
    model.save_pretrained(tmp_path)
    told = []
    back, fresh = load_model(
        GridVLPForAnswering,
        tmp_path,
        answers=["red", "cat", "yes", "dog"],
        max_position_embeddings=30,
        type_vocab_size=3,
        say=told.append,
    )
    assert fresh == []
    head, before = back.answering.classifier, model.answering.classifier
    assert head.weight[0].equal(before.weight[2])
    assert head.weight[2].equal(before.weight[0])
    assert head.bias[2].equal(before.bias[0])
    assert head.weight[[1, 3]].abs().sum() == 0
    ours, theirs = back.bert.embeddings, model.bert.embeddings
    assert ours.position_embeddings.weight[:24].equal(theirs.position_embeddings.weight)
    assert ours.position_embeddings.weight[24:].abs().sum() > 0
    assert ours.token_type_embeddings.weight[[1, 2]].equal(
        theirs.token_type_embeddings.weight[[1, 1]]
    )
    assert "2 of 4 answers start from their row" in told[0]
    assert "position_embeddings.weight: 24 rows in" in told[1]
    assert "token_type_embeddings.weight: 2 rows in" in told[2]
    # The same number of other answers must not take the rows as they stand.
    back, _ = load_model(
        GridVLPForAnswering, tmp_path, answers=["red", "yes", "cat"], say=told.append
    )
    assert back.answering.classifier.weight[0].equal(before.weight[2])
    assert "2 of 3 answers" in told[-1]


def test_positions_too_few_for_a_sentence_are_made_up_for(tmp_path):
    GridVLPModel(small_config(max_position_embeddings=8)).save_pretrained(tmp_path)
    told = []
    model, _ = load_model(GridVLPModel, tmp_path, say=told.append)
    assert len(model.embeddings.position_embeddings.weight) == 20
    assert "8 rows in" in told[0]


def test_answer_rows_are_copied_by_name_and_others_are_zero():
    source, head = AnswerHead(8, 16, 3), AnswerHead(8, 16, 4)
    copied = copy_answer_rows(head, ["blue", "red", "no", "cat"], source, ["no", "yes", "red"])
    assert copied == 2
    torch.testing.assert_close(head.classifier.weight[1], source.classifier.weight[2])
    torch.testing.assert_close(head.classifier.bias[2], source.classifier.bias[0])
    assert head.classifier.weight[[0, 3]].abs().sum() == 0
    with pytest.raises(UserError, match="another width"):
        copy_answer_rows(AnswerHead(8, 8, 4), ["a"] * 4, source, ["no"])
