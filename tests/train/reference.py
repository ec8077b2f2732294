"""The model and its gradient from the papers' definitions, in float64 and one sequence at a time.

Nothing of the package is used: BERT (Devlin et al. 2019), the image as a Linear of each grid plus a
modality embedding (paper 3.2), the heads of LXMERT and UNITER.
"""

import math

import torch
from torch.nn import functional


class Reference:
    """A model's weights in float64, each with a gradient.

    Args:
        weights: by the names of the saved model.
        heads: of attention.
    """

    def __init__(self, weights, heads):
        self.p = {name: value.double().requires_grad_() for name, value in weights.items()}
        self.heads = heads

    def gradients(self):
        return {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in self.p.items()
        }

    def linear(self, name, x):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def words(self, ids_L):
        at = "bert.embeddings."
        summed_LD = (
            self.p[f"{at}word_embeddings.weight"][ids_L]
            + self.p[f"{at}position_embeddings.weight"][: len(ids_L)]
            + self.p[f"{at}token_type_embeddings.weight"][0]
        )
        return self.norm(f"{at}LayerNorm", summed_LD)

    def image(self, grids_GC, boxes_G4, modality):
        image_GD = self.linear("bert.grid_projection", grids_GC.double())
        if boxes_G4 is not None:
            x1, y1, x2, y2 = boxes_G4.double().T
            place_G5 = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], dim=-1)
            image_GD = image_GD + self.linear("bert.box_projection", place_G5)
        return image_GD + self.p["bert.embeddings.token_type_embeddings.weight"][modality]

    def attended(self, query_LD, key_SD, value_SD):
        width = query_LD.shape[1] // self.heads
        parts = []
        for head in range(self.heads):
            of = slice(head * width, (head + 1) * width)
            scores_LS = query_LD[:, of] @ key_SD[:, of].T / math.sqrt(width)
            parts.append(scores_LS.softmax(-1) @ value_SD[:, of])
        return torch.cat(parts, dim=-1)

    def encoded(self, sequence_SD):
        layer = 0
        while f"bert.encoder.layer.{layer}.output.dense.weight" in self.p:
            at = f"bert.encoder.layer.{layer}."
            context_SD = self.attended(
                *(self.linear(f"{at}attention.self.{n}", sequence_SD) for n in BERTS)
            )
            dense_SD = self.linear(f"{at}attention.output.dense", context_SD)
            sequence_SD = self.norm(f"{at}attention.output.LayerNorm", sequence_SD + dense_SD)
            wide_SX = functional.gelu(self.linear(f"{at}intermediate.dense", sequence_SD))
            dense_SD = self.linear(f"{at}output.dense", wide_SX)
            sequence_SD = self.norm(f"{at}output.LayerNorm", sequence_SD + dense_SD)
            layer += 1
        return sequence_SD

    def pooled(self, sequence_SD):
        return self.linear("bert.pooler.dense", sequence_SD[0]).tanh()

    def answers(self, pooled_D):
        dense = functional.gelu(self.linear("answering.dense", pooled_D))
        return self.linear("answering.classifier", self.norm("answering.LayerNorm", dense))

    def words_of(self, hidden_D):
        at = "cls.predictions."
        dense_D = functional.gelu(self.linear(f"{at}transform.dense", hidden_D))
        normed_D = self.norm(f"{at}transform.LayerNorm", dense_D)
        embeddings_VD = self.p["bert.embeddings.word_embeddings.weight"]
        return embeddings_VD @ normed_D + self.p[f"{at}bias"]

    def pair_attention(self, left_SD, right_SD):
        merged = []
        for name, own_SD, other_TD in (
            ("to_right", left_SD, right_SD),
            ("to_left", right_SD, left_SD),
        ):
            at = f"answering.{name}."
            weights = self.p[f"{at}in_proj_weight"].chunk(3)
            biases = self.p[f"{at}in_proj_bias"].chunk(3)
            given = (own_SD, other_TD, other_TD)
            query, key, value = (
                x @ w.T + b for x, w, b in zip(given, weights, biases, strict=True)
            )
            found_SD = self.linear(f"{at}out_proj", self.attended(query, key, value))
            both_SX = torch.cat([found_SD, own_SD], dim=-1)
            merged.append(self.linear("answering.merge.0", both_SX).relu())
        pooled = [
            self.linear("answering.weigh.0", merged_SD).relu().softmax(0).T @ merged_SD
            for merged_SD in merged
        ]
        return self.linear("answering.classifier", torch.cat(pooled, dim=-1))[0]


BERTS = ("query", "key", "value")


def examples(batch):
    """For each row of a batch: its words, and its images' grids and boxes, without padding."""
    inputs = batch.inputs
    index = inputs["image_index_B"]
    index_BN = index if index.ndim == 2 else index[:, None]
    boxes_IG4 = inputs.get("boxes_IG4")
    for ids_L, mask_L, images_N in zip(
        inputs["input_ids_BL"], inputs["text_mask_BL"], index_BN.tolist(), strict=True
    ):
        images = []
        for image in images_N:
            mask_G = inputs["grid_mask_IG"][image]
            boxes_G4 = None if boxes_IG4 is None else boxes_IG4[image][mask_G]
            images.append((inputs["grids_IGC"][image][mask_G], boxes_G4))
        yield ids_L[mask_L], images


def sequence(reference, ids_L, images, first=1):
    parts = [reference.image(*image, first + number) for number, image in enumerate(images)]
    return reference.encoded(torch.cat([reference.words(ids_L), *parts]))


def pretraining_loss(reference, batches):
    """The three means (LXMERT weighs them equally) over all that a step's batches hold."""
    sums, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        length = batch.inputs["input_ids_BL"].shape[1]
        masked = dict(
            zip(batch.masked_positions_M.tolist(), batch.masked_words_M.tolist(), strict=True)
        )
        for row, (ids_L, images) in enumerate(examples(batch)):
            hidden_SD = sequence(reference, ids_L, images)
            for place in range(length):
                word = masked.get(row * length + place)
                if word is not None:
                    logits_V = reference.words_of(hidden_SD[place])
                    sums[0] = sums[0] - logits_V.log_softmax(-1)[word]
                    counts[0] += 1
            pooled_D = reference.pooled(hidden_SD)
            match_2 = reference.linear("matching", pooled_D)
            sums[1] = sums[1] - match_2.log_softmax(-1)[batch.matched_B[row]]
            counts[1] += 1
            if batch.answer_B[row] >= 0:
                logits_A = reference.answers(pooled_D)
                sums[2] = sums[2] - logits_A.log_softmax(-1)[batch.answer_B[row]]
                counts[2] += 1
    assert (counts > 0).all()
    return (sums / counts).sum()


def task_loss(reference, batches, head):
    """VQA's binary cross-entropy over all answers, or NLVR2's cross-entropy; a mean of examples."""
    losses = []
    for batch in batches:
        rows = list(examples(batch))
        count = len(batch.targets_BA)
        for number, target_A in enumerate(batch.targets_BA.double()):
            if head in ("answer", "triplet"):
                logits_A = reference.answers(reference.pooled(sequence(reference, *rows[number])))
            else:
                apart = 1 if head == "pair" else 2
                left_SD = sequence(reference, *rows[number])
                right_SD = sequence(reference, *rows[count + number], first=apart)
                if head == "pair":
                    both = [reference.pooled(side_SD) for side_SD in (left_SD, right_SD)]
                    logits_A = reference.answers(torch.cat(both))
                else:
                    logits_A = reference.pair_attention(left_SD, right_SD)
            if head == "answer":
                chance_A = logits_A.sigmoid()
                right, wrong = target_A * chance_A.log(), (1 - target_A) * (1 - chance_A).log()
                losses.append(-(right + wrong).sum())
            else:
                losses.append(-(target_A * logits_A.log_softmax(-1)).sum())
    return torch.stack(losses).mean()
