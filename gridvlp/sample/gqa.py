"""GQA: balanced questions with their programs, and scene graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.sample.files import write_json
from gridvlp.sample.photos import Photos, object_id, visual_genome_id
from gridvlp.sample.questions import (
    GQA_SHARES,
    Question,
    balanced_questions,
    phrase,
)
from gridvlp.sample.render import Box
from gridvlp.sample.scene import COLOURS, SHAPES, Scene

QUESTIONS_PER_PHOTO = 9
# Types of a kind (detailed, semantic, structural), and its full answers (yes, no; or one of {2}).
KINDS: dict[str, tuple[tuple[str, str, str], tuple[str, ...]]] = {
    "exist": (
        ("existAttr", "obj", "verify"),
        ("Yes, there is {a0} {1}.", "No, there is no {0} {1}."),
    ),
    "exist shape": (("exist", "obj", "verify"), ("Yes, there is a {0}.", "No, there is no {0}.")),
    "exist color": (
        ("existThat", "obj", "verify"),
        ("Yes, there is something {0}.", "No, there is nothing {0}."),
    ),
    "verify color": (
        ("verifyAttr", "attr", "verify"),
        ("Yes, the {1} is {0}.", "No, the {1} is not {0}."),
    ),
    "verify material": (
        ("materialVerify", "attr", "verify"),
        ("Yes, the {1} is made of {0}.", "No, the {1} is not made of {0}."),
    ),
    "verify size": (
        ("verifyAttrThis", "attr", "verify"),
        ("Yes, the {1} is {0}.", "No, the {1} is not {0}."),
    ),
    "and": (
        ("existAnd", "obj", "logical"),
        ("Yes, there are both a {0} and a {1}.", "No, there are not both a {0} and a {1}."),
    ),
    "or": (
        ("existOr", "obj", "logical"),
        ("Yes, there is a {0} or a {1}.", "No, there is no {0} and no {1}."),
    ),
    "same color": (
        ("twoSame", "attr", "compare"),
        ("Yes, the {0} and the {1} are the same color.", "No, the {0} and the {1} differ."),
    ),
    "choose color": (("chooseAttr", "attr", "choose"), ("The {0} is {answer}.",)),
    "choose material": (("materialChoose", "attr", "choose"), ("The {0} is made of {answer}.",)),
    "color": (("directOf", "attr", "query"), ("The {0} is {answer}.",)),
    "shape": (("categoryThat", "cat", "query"), ("The {0} thing is a {answer}.",)),
    "material": (("material", "attr", "query"), ("The {0} is made of {answer}.",)),
    "size": (("how", "attr", "query"), ("The {0} is {answer}.",)),
}
# Groups of alternative answers; yes and no form none.
GROUPS = {
    "color": "color", "choose color": "color", "shape": "shape", "material": "material",
    "choose material": "material", "size": "size",
}  # fmt: skip


def write_gqa(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    """Write questions of train, val and testdev, and scene graphs of two; returns the counts."""
    counts = {}
    for split in ("train", "val", "testdev"):
        photos = splits[split]
        rng = np.random.default_rng([seed, 104, photos.ids[0]])
        names = [
            f"n{image}" if split == "testdev" else str(visual_genome_id(image))
            for image in photos.ids
        ]
        made = balanced_questions(photos.scenes, GQA_SHARES, QUESTIONS_PER_PHOTO, rng)
        first = 100 * photos.ids[0]
        ids = {
            (question.scene, question.kind, question.arguments, question.answer): str(first + n)
            for n, question in enumerate(made)
        }
        entries = {}
        for id, question in zip(ids.values(), made, strict=True):
            entailed = [ids[key] for key in _entailed(question) if key in ids]
            scene, image = photos.scenes[question.scene], photos.ids[question.scene]
            entries[id] = _entry(id, question, scene, image, names[question.scene], entailed)
        write_json(data / "gqa" / f"{split}_balanced_questions.json", entries)
        counts[f"GQA questions {split}"] = len(entries)
        if split != "testdev":
            graphs = {
                names[place]: _scene_graph(photos.scenes[place], photos.boxes[place], image)
                for place, image in enumerate(photos.ids)
            }
            write_json(data / "gqa" / f"{split}_sceneGraphs.json", graphs)
    return counts


def _entailed(question: Question) -> list[tuple[int, str, tuple[str, ...], str]]:
    """Questions of the same scene whose answer follows: (scene, kind, arguments, answer)."""
    scene, kind, words, answer = question.scene, question.kind, question.arguments, question.answer
    follows: list[tuple[str, tuple[str, ...], str]] = []
    if kind == "color":
        follows += [
            ("verify color", (c, words[0]), "yes" if c == answer else "no") for c in COLOURS
        ]
        follows += [("exist", (answer, words[0]), "yes")]
    if kind == "verify color" and answer == "yes":
        follows += [("color", (words[1],), words[0]), ("exist", words, "yes")]
    if kind == "exist" and answer == "yes":
        follows += [("exist shape", (words[1],), "yes"), ("exist color", (words[0],), "yes")]
    if kind == "shape":
        follows += [("exist", (words[0], answer), "yes"), ("exist shape", (answer,), "yes")]
    if kind == "and" and answer == "yes":
        follows += [("exist shape", (shape,), "yes") for shape in words] + [("or", words, "yes")]
    if kind == "or" and answer == "no":
        follows += [("exist shape", (shape,), "no") for shape in words] + [("and", words, "no")]
    return [(scene, *one) for one in follows]


def _entry(
    id: str, question: Question, scene: Scene, image: int, name: str, entailed: list[str]
) -> dict[str, Any]:
    (detailed, semantic, structural), full_answers = KINDS[question.kind]
    full = full_answers[question.answer == "no"] if len(full_answers) > 1 else full_answers[0]
    full = phrase(full.replace("{answer}", question.answer), question.arguments)
    program = _program(question, scene, image)
    steps = [
        f"{step['operation']}: {step['argument']}"
        + (f" {step['dependencies']}" if step["dependencies"] else "")
        for step in program
    ]
    named = question.answer if question.kind == "shape" else ""
    return {
        "semantic": program,
        "entailed": entailed,
        "equivalent": [id],
        "question": question.text,
        "imageId": name,
        "isBalanced": True,
        "groups": {
            "global": GROUPS.get(question.kind),
            "local": f"{question.kind.replace(' ', '-')}-{'_'.join(question.arguments)}",
        },
        "answer": question.answer,
        "semanticStr": "->".join(steps),
        "annotations": {
            "answer": _mentions(named, scene, image),
            "question": _mentions(question.text, scene, image),
            "fullAnswer": _mentions(full, scene, image),
        },
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "fullAnswer": full,
    }


def _mentions(text: str, scene: Scene, image: int) -> dict[str, str]:
    """Which word names which object: place in the text to object, for shapes that are unique."""
    found = {}
    for place, word in enumerate(text.lower().rstrip("?.").split()):
        thing = scene.only(word) if word in SHAPES else None
        if thing is not None:
            found[str(place)] = str(object_id(image, scene.things.index(thing)))
    return found


def _program(question: Question, scene: Scene, image: int) -> list[dict[str, Any]]:
    """The question as GQA's functional program."""
    kind, words = question.kind, question.arguments

    def step(operation: str, dependencies: list[int], argument: str = "") -> dict[str, Any]:
        return {"operation": operation, "dependencies": dependencies, "argument": argument}

    def select(name: str, property: str = "") -> dict[str, Any]:
        having = property or name
        found = [str(object_id(image, n)) for n, t in enumerate(scene.things) if t.has(having)]
        return step("select", [], f"{name} ({','.join(found) or '-'})")

    if kind in ("and", "or"):
        return [
            select(words[0]),
            step("exist", [0], "?"),
            select(words[1]),
            step("exist", [2], "?"),
            step(kind, [1, 3]),
        ]
    if kind == "exist shape":
        return [select(words[0]), step("exist", [0], "?")]
    if kind == "exist color":
        return [select("thing", words[0]), step("exist", [0], "?")]
    if kind == "exist":
        attribute = "color" if words[0] in COLOURS else "material"
        return [
            select(words[1]),
            step(f"filter {attribute}", [0], words[0]),
            step("exist", [1], "?"),
        ]
    if kind == "same color":
        return [select(words[0]), select(words[1]), step("same color", [0, 1])]
    if kind == "shape":
        return [select("thing", words[0]), step("query", [0], "name")]
    if kind.startswith("verify "):
        return [select(words[1]), step(kind, [0], words[0])]
    if kind.startswith("choose "):
        return [select(words[0]), step(kind, [0], f"{words[1]}|{words[2]}")]
    return [select(words[0]), step("query", [0], kind)]


def _scene_graph(scene: Scene, boxes: list[Box], image: int) -> dict[str, Any]:
    def relations(number: int) -> list[dict[str, str]]:
        here = scene.things[number].x
        return [
            {
                "object": str(object_id(image, other)),
                "name": "to the left of" if here < thing.x else "to the right of",
            }
            for other, thing in enumerate(scene.things)
            if other != number
        ]

    return {
        "width": scene.width,
        "height": scene.height,
        "objects": {
            str(object_id(image, number)): {
                "name": thing.shape,
                "h": h,
                "relations": relations(number),
                "w": w,
                "attributes": [thing.colour, thing.material, thing.size],
                "y": y,
                "x": x,
            }
            for number, (thing, (x, y, w, h)) in enumerate(zip(scene.things, boxes, strict=True))
        },
    }
