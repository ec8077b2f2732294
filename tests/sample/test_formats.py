"""The files against the official formats: names, fields, and what they say of the photos."""

import hashlib
import io
import json
import re
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from gridvlp.sample.scene import COLOURS, SHAPES

VQA_SPLITS = ("train2014", "val2014", "test2015")
GQA_SPLITS = ("train", "val", "testdev")
NLVR2_SPLITS = ("train", "dev", "test1")

# Fields of the official releases (shared/RECIPES of the formats; GQA's and NLVR2's own pages)
GQA_FIELDS = {
    "semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer",
    "semanticStr", "annotations", "types", "fullAnswer",
}  # fmt: skip
NLVR2_FIELDS = {
    "validation", "sentence", "left_url", "writer", "label", "right_url", "synset", "query",
    "identifier",
}  # fmt: skip


def vqa(load, split):
    questions = load(f"vqa/v2_OpenEnded_mscoco_{split}_questions.json")
    return questions, load(f"vqa/v2_mscoco_{split}_annotations.json")


def inside(box, width, height):
    x, y, w, h = box
    return x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height


@pytest.fixture(scope="module")
def photos(data):
    """Every photo of the world: path below data to size."""
    found = {}
    for path in sorted(p for p in data.rglob("*") if p.suffix in (".jpg", ".png")):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            found[str(path.relative_to(data))] = image.size
    return found


def test_photos_are_where_the_official_releases_have_them(photos):
    patterns = {
        r"coco/train2017/\d{12}\.jpg": 200,
        r"coco/val2017/\d{12}\.jpg": 25,
        r"coco/test2015/COCO_test2015_\d{12}\.jpg": 31,
        r"vg/VG_100K(_2)?/\d+\.jpg": 200 + 25 + 10,
        r"gqa/images/n\d+\.jpg": 31,
        r"nlvr2/images/train/\d+/train-\d+-[0-3]-img[01]\.png": 8 * 28,
        r"nlvr2/images/dev/dev-\d+-[0-3]-img[01]\.png": 8 * 3,
        r"nlvr2/images/test1/test1-\d+-[0-3]-img[01]\.png": 8 * 4,
    }
    matched = {p: sum(bool(re.fullmatch(p, name)) for name in photos) for p in patterns}
    assert matched == patterns
    assert sum(patterns.values()) == len(photos)


def test_some_photos_named_png_are_jpeg_inside(data):
    formats = set()
    for path in data.glob("nlvr2/images/train/*/*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            formats.add(image.format)
    assert formats == {"PNG", "JPEG"}


def test_photos_of_different_splits_are_different(data, photos):
    """Only Visual Genome repeats photos: those of COCO's train and val splits."""
    folders = defaultdict(set)
    for name in photos:
        folder = "nlvr2-" + name.split("/")[2] if "nlvr2" in name else name.rsplit("/", 1)[0]
        folders[folder].add(hashlib.sha256((data / name).read_bytes()).hexdigest())
    in_vg = folders.pop("vg/VG_100K") | folders.pop("vg/VG_100K_2")
    assert folders["coco/train2017"] | folders["coco/val2017"] < in_vg
    assert len(in_vg) == 235
    everything = [digest for digests in folders.values() for digest in digests]
    assert len(everything) == len(set(everything))
    for folder, digests in folders.items():
        if folder not in ("coco/train2017", "coco/val2017"):
            assert not digests & in_vg


def test_no_two_splits_show_the_same_scenes(photos):
    """Not even with other noise: then the sizes of their photos would come in the same order."""
    orders = defaultdict(list)
    for name in sorted(photos, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        if not name.startswith("vg/"):
            split = "/".join(name.split("/")[: 3 if "nlvr2" in name else 2])
            orders[split].append(photos[name])
    assert len(orders) == 7
    assert len({tuple(sizes[:20]) for sizes in orders.values()}) == 7


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco(load, photos, split):
    captions = load(f"coco/annotations/captions_{split}.json")
    instances = load(f"coco/annotations/instances_{split}.json")
    assert {"info", "licenses", "images", "annotations"} == set(captions)
    assert {"info", "licenses", "images", "annotations", "categories"} == set(instances)
    assert captions["images"] == instances["images"]
    images = {image["id"]: image for image in captions["images"]}
    for image in images.values():
        assert image["file_name"] == f"{image['id']:012}.jpg"
        assert photos[f"coco/{split}/{image['file_name']}"] == (image["width"], image["height"])
    assert len(captions["annotations"]) == 5 * len(images)
    for entries in (captions["annotations"], instances["annotations"]):
        assert len({entry["id"] for entry in entries}) == len(entries)
        assert {entry["image_id"] for entry in entries} == set(images)
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    assert set(categories.values()) == set(SHAPES)
    for entry in instances["annotations"]:
        image = images[entry["image_id"]]
        assert inside(entry["bbox"], image["width"], image["height"])
        xs, ys = entry["segmentation"][0][::2], entry["segmentation"][0][1::2]
        x, y, w, h = entry["bbox"]
        assert (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) == (x, y, w, h)
        assert entry["area"] == w * h
        assert entry["category_id"] in categories


def test_visual_genome(load, photos):
    image_data = {image["image_id"]: image for image in load("vg/image_data.json")}
    own = [image for image in image_data.values() if image["coco_id"] is None]
    assert 0.03 < len(own) / len(image_data) < 0.07
    coco = [
        image["id"]
        for split in ("train2017", "val2017")
        for image in load(f"coco/annotations/captions_{split}.json")["images"]
    ]
    assert sorted(i["coco_id"] for i in image_data.values() if i["coco_id"]) == sorted(coco)
    files = {int(name.split("/")[-1][:-4]): s for name, s in photos.items() if name[:3] == "vg/"}
    assert {id: (i["width"], i["height"]) for id, i in image_data.items()} == files

    def boxes(entry, image):
        box = (
            entry["x"],
            entry["y"],
            entry.get("w", entry.get("width")),
            entry.get("h", entry.get("height")),
        )
        assert inside(box, image["width"], image["height"])

    objects = {entry["image_id"]: entry["objects"] for entry in load("vg/objects.json")}
    having = {entry["image_id"]: entry["attributes"] for entry in load("vg/attributes.json")}
    regions = {entry["id"]: entry["regions"] for entry in load("vg/region_descriptions.json")}
    asked = {entry["id"]: entry["qas"] for entry in load("vg/question_answers.json")}
    assert set(image_data) == set(objects) == set(having) == set(regions) == set(asked)
    ids = defaultdict(list)
    for image, things in objects.items():
        assert 2 <= len(things) <= 3
        for thing, described in zip(things, having[image], strict=True):
            boxes(thing, image_data[image])
            ids["object"].append(thing["object_id"])
            assert thing["names"][0] in SHAPES
            assert thing["synsets"]
            same = ("object_id", "x", "y", "w", "h", "names")
            assert [thing[key] for key in same] == [described[key] for key in same]
            assert len(described["attributes"]) == 3
            assert described["attributes"][0] in COLOURS
        for region in regions[image]:
            boxes(region, image_data[image])
            assert region["image_id"] == image
            assert region["phrase"]
            ids["region"].append(region["region_id"])
        for qa in asked[image]:
            assert {"a_objects", "question", "image_id", "qa_id", "answer", "q_objects"} == set(qa)
            assert qa["image_id"] == image
            ids["qa"].append(qa["qa_id"])
    assert all(len(found) == len(set(found)) for found in ids.values())
    assert 8 < len(ids["region"]) / len(image_data) < 14
    assert 3 < len(ids["qa"]) / len(image_data) < 6


def test_vqa(load, photos):
    used = {}
    for split in VQA_SPLITS:
        questions, annotations = vqa(load, split)
        assert questions["data_subtype"] == annotations["data_subtype"] == split
        assert questions["task_type"] == "Open-Ended"
        truths = {entry["question_id"]: entry for entry in annotations["annotations"]}
        assert len(truths) == len(questions["questions"])
        for entry in questions["questions"]:
            truth = truths[entry["question_id"]]
            assert entry["question_id"] // 1000 == entry["image_id"] == truth["image_id"]
            assert truth["answer_type"] in ("yes/no", "number", "other")
            assert [answer["answer_id"] for answer in truth["answers"]] == list(range(1, 11))
            assert {a["answer_confidence"] for a in truth["answers"]} <= {"yes", "maybe", "no"}
        used[split] = {entry["image_id"] for entry in questions["questions"]}
    assert used["val2014"] <= {
        image["id"] for image in load("coco/annotations/captions_val2017.json")["images"]
    }
    assert not used["train2014"] & used["val2014"]
    for image in used["test2015"]:
        assert f"coco/test2015/COCO_test2015_{image:012}.jpg" in photos


def test_vqa_annotators_are_imperfect_and_the_truth_still_scores(load):
    """The official accuracy of the true answer: leave each annotator out, min(1, n / 3)."""
    right, scores = [], []
    for split in VQA_SPLITS:
        for entry in vqa(load, split)[1]["annotations"]:
            agree = [a["answer"] == entry["multiple_choice_answer"] for a in entry["answers"]]
            right += agree
            scores.append(np.mean([min(1, (sum(agree) - one) / 3) for one in agree]))
    assert 0.92 < np.mean(right) < 0.98
    assert np.mean(scores) >= 0.98


def test_gqa(load, photos):
    ids = set()
    for split in GQA_SPLITS:
        questions = load(f"gqa/{split}_balanced_questions.json")
        assert not ids & set(questions)
        ids |= set(questions)
        for id, entry in questions.items():
            assert set(entry) == GQA_FIELDS
            assert entry["isBalanced"] is True
            assert id in entry["equivalent"]
            assert set(entry["types"]) == {"detailed", "semantic", "structural"}
            assert set(entry["annotations"]) == {"answer", "question", "fullAnswer"}
            assert re.fullmatch(r"[A-Z].*\.", entry["fullAnswer"])
            if entry["answer"] in ("yes", "no"):
                assert entry["fullAnswer"].lower().startswith(entry["answer"])
            else:
                assert entry["answer"] in entry["fullAnswer"]
            for place, step in enumerate(entry["semantic"]):
                assert set(step) == {"operation", "dependencies", "argument"}
                assert all(0 <= before < place for before in step["dependencies"])
            if split == "testdev":
                assert f"gqa/images/{entry['imageId']}.jpg" in photos
            else:
                number = entry["imageId"]
                assert {f"vg/VG_100K/{number}.jpg", f"vg/VG_100K_2/{number}.jpg"} & set(photos)


def test_gqa_entailed_questions_follow(load):
    """Of the same photo; and one whose answer is yes entails none whose words contradict it."""
    count = 0
    questions = load("gqa/train_balanced_questions.json")
    for id, entry in questions.items():
        for other in entry["entailed"]:
            count += 1
            assert other != id
            assert questions[other]["imageId"] == entry["imageId"]
            if entry["types"]["detailed"] == "directOf" and questions[other]["answer"] == "yes":
                assert entry["answer"] in questions[other]["question"]
    assert count > 100


def test_gqa_scene_graphs_and_programs_name_the_same_objects(load):
    for split in ("train", "val"):
        graphs = load(f"gqa/{split}_sceneGraphs.json")
        for graph in graphs.values():
            for id, thing in graph["objects"].items():
                box = (thing["x"], thing["y"], thing["w"], thing["h"])
                assert inside(box, graph["width"], graph["height"])
                for relation in thing["relations"]:
                    other = graph["objects"][relation["object"]]
                    assert relation["object"] != id
                    back = [r["name"] for r in other["relations"] if r["object"] == id]
                    assert {relation["name"], *back} == {"to the left of", "to the right of"}
        for entry in load(f"gqa/{split}_balanced_questions.json").values():
            objects = graphs[entry["imageId"]]["objects"]
            for step in entry["semantic"]:
                if step["operation"] == "select":
                    name, found = re.fullmatch(r"(\w+) \((.*)\)", step["argument"]).groups()
                    expected = {id for id, thing in objects.items() if thing["name"] == name}
                    if name != "thing":
                        assert set(found.split(",")) == (expected or {"-"})
            for text in ("question", "fullAnswer"):
                words = entry[text].lower().rstrip("?.").split()
                for place, id in entry["annotations"][text].items():
                    assert objects[id]["name"] == words[int(place)]


def test_nlvr2(load, photos):
    for split in NLVR2_SPLITS:
        pairs, sentences, identifiers = set(), {}, set()
        for line in load(f"nlvr2/{split}.json"):
            fields = {"directory"} if split == "train" else {"extra_validations"}
            assert set(line) == NLVR2_FIELDS | fields
            name, number, pair, sentence = line["identifier"].split("-")
            assert name == split
            assert line["label"] in ("True", "False")
            folder = f"train/{line['directory']}" if split == "train" else split
            for side in (0, 1):
                file = f"nlvr2/images/{folder}/{split}-{number}-{pair}-img{side}.png"
                assert file in photos
            pairs.add((number, pair))
            identifiers.add(line["identifier"])
            sentences.setdefault((number, sentence), set()).add(line["sentence"])
        assert len(identifiers) == len(load(f"nlvr2/{split}.json"))
        assert all(len(texts) == 1 for texts in sentences.values())
        assert len(identifiers) == 7 * len(pairs)


def test_the_questions_agree_with_the_objects(load):
    """What VQA, GQA and Visual Genome say of one photo, they say of the same things."""
    by_photo = {e["image_id"]: e["attributes"] for e in load("vg/attributes.json")}
    coco_of = {i["image_id"]: i["coco_id"] for i in load("vg/image_data.json")}
    vg_of = {coco: image for image, coco in coco_of.items() if coco}
    asked = [
        (vg_of[entry["image_id"]], entry["question"], truth["multiple_choice_answer"])
        for split in ("train2014", "val2014")
        for entry, truth in zip(
            vqa(load, split)[0]["questions"], vqa(load, split)[1]["annotations"], strict=True
        )
    ]
    asked += [
        (int(entry["imageId"]), entry["question"], entry["answer"])
        for split in ("train", "val")
        for entry in load(f"gqa/{split}_balanced_questions.json").values()
    ]
    asked += [
        (entry["id"], qa["question"], qa["answer"].rstrip(".").lower())
        for entry in load("vg/question_answers.json")
        for qa in entry["qas"]
    ]
    checked = 0
    for image, question, answer in asked:
        if match := re.fullmatch(r"What (?:color is|is the color of) the (\w+)\?", question):
            (thing,) = [t for t in by_photo[image] if t["names"] == [match[1]]]
            assert thing["attributes"][0] == answer
            checked += 1
        elif match := re.fullmatch(r"How many (\w+)s (?:are there|do you see)\?", question):
            assert sum(t["names"] == [match[1]] for t in by_photo[image]) == int(answer)
            checked += 1
    assert checked > 500


def test_fields_are_those_of_the_real_files(load, shared_data):
    """Beside the official releases themselves: no field is missing."""

    def real(name):
        return json.loads((shared_data / name).read_text())

    def first(entries):
        return next(iter(entries.values() if isinstance(entries, dict) else entries))

    for split in ("train2017", "val2017"):
        for kind in ("captions", "instances"):
            name = f"coco/annotations/{kind}_{split}.json"
            theirs, ours = real(name), load(name)
            assert set(theirs) == set(ours)
            for part in ("images", "annotations", *(["categories"] * (kind == "instances"))):
                assert set(theirs[part][0]) == set(ours[part][0])
    for split in ("train2014", "val2014"):
        for name, part in (
            (f"vqa/v2_OpenEnded_mscoco_{split}_questions.json", "questions"),
            (f"vqa/v2_mscoco_{split}_annotations.json", "annotations"),
        ):
            theirs, ours = real(name), load(name)
            # The format description has no task_type for annotations; a copy may have it
            assert set(theirs) - {"task_type"} == set(ours) - {"task_type"}
            # Some entries of the small copy are cut down to what is needed
            assert set().union(*theirs[part]) == set(ours[part][0])
    name = "gqa/train_balanced_questions.json"
    assert set(first(real(name))) == set(first(load(name)))
    theirs, ours = (
        first(real("gqa/train_sceneGraphs.json")),
        first(load("gqa/train_sceneGraphs.json")),
    )
    assert set(theirs) - {"location", "weather"} == set(ours)
    assert set(first(theirs["objects"])) == set(first(ours["objects"]))
    theirs, ours = real("vg/question_answers.json")[0], load("vg/question_answers.json")[0]
    assert set(theirs) == set(ours)
    assert set(theirs["qas"][0]) == set(ours["qas"][0])
    for split in ("dev", "test1"):
        line = (shared_data / f"nlvr2/{split}.json").read_text().splitlines()[0]
        assert set(json.loads(line)) == set(load(f"nlvr2/{split}.json")[0])
