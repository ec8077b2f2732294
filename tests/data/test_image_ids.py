import json

import pytest

from gridvlp.data.image_ids import ImageIds, first_present
from gridvlp.errors import UserError


@pytest.fixture
def ids(tmp_path):
    images = [
        {"image_id": 2345, "coco_id": 262148, "width": 3, "height": 4, "flickr_id": 1, "url": ""},
        {"image_id": 2346, "coco_id": None, "width": 3, "height": 4},
    ]
    (tmp_path / "image_data.json").write_text(json.dumps(images))
    return ImageIds(tmp_path)


def test_coco_ids_have_twelve_digits(ids):
    assert ids.coco(262148) == ids.coco("262148") == "000000262148"
    for bad in ("abc", -1, 10**12, None):
        with pytest.raises(UserError, match="COCO image_id"):
            ids.coco(bad)


def test_a_visual_genome_photo_may_be_served_by_cocos_map(ids):
    assert ids.visual_genome(2345) == ids.gqa("2345") == ("2345", "000000262148")
    assert ids.visual_genome(2346) == ("2346",)
    assert ids.gqa("n578564") == ("n578564",)
    assert first_present(ids.gqa("2345"), {"000000262148"}) == "000000262148"
    assert first_present(ids.gqa("2345"), {"000000262148", "2345"}) == "2345"
    assert first_present(ids.gqa("2346"), {"000000262148"}) is None
    assert first_present(ids.gqa("2346"), None) == "2346"


def test_without_image_data_a_photo_has_its_own_name_only(tmp_path):
    assert ImageIds(tmp_path).gqa("2345") == ("2345",)


def test_nlvr2_identifiers_name_two_photos(ids):
    assert ids.nlvr2("dev-850-0-1") == ("dev-850-0-img0", "dev-850-0-img1")
    for bad in ("dev-850-0", "dev-850-0-1-2", "dev--0-1", ""):
        with pytest.raises(UserError, match="NLVR2 identifier"):
            ids.nlvr2(bad)


def test_a_cut_image_data_file_is_named(ids):
    path = ids.image_data
    path.write_text(path.read_text()[:60])
    with pytest.raises(UserError, match=r"image_data\.json is not whole JSON.*ends too early"):
        ids.visual_genome(2345)
