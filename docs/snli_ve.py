"""Visual entailment (SNLI-VE, Xie et al. 2019) as a task of gridvlp: the whole of it.

    gridvlp finetune snli_ve.py
    gridvlp evaluate snli_ve.py --split test
"""

from gridvlp.tasks import Task, json_files, json_text, json_values, percent

LABELS = ("contradiction", "entailment", "neutral")


class SNLIVE(Task):
    """Does the photo entail the sentence, contradict it, or neither?"""

    name = "snli-ve"
    splits = ("train", "dev", "test")
    train_splits = ("train",)
    valid_split = "dev"
    test_split = "test"

    def files(self, data, split):
        return [data / "snli_ve" / f"snli_ve_{split}.jsonl"]

    def photo_folders(self, data, split):
        return [data / "flickr30k" / "flickr30k_images"]

    def count_answers(self, data):
        return list(LABELS)

    def _read(self, data, split, reader):
        (path,) = self.files(data, split)
        for number, line in json_files.lines(path):
            label = line.get("gold_label")
            reader.add(
                id=json_values.string(line, "pairID", path, number),
                sentence=json_values.field(line, "sentence2", path, number),
                images=[(json_values.name(line, "Flickr30K_ID", path, number),)],
                target=[(label, 1.0)] if label else (),
                kind="",
                truth=label,
                entry=number,
            )

    def loss(self, logits_BA, targets_BA):
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_BA, targets_BA)

    def credit(self, truth, answer):
        return float(answer == truth)

    def score(self, examples, predicted):
        pairs = self.labelled(examples, predicted)
        return {"accuracy": percent([self.credit(e.truth, answer) for e, answer in pairs])}

    def submission(self, ids, answers):
        return json_text(dict(zip(ids, answers, strict=True)))
