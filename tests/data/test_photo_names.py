"""No two photos share a key or a name by accident."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.data.photo_names import NAME_BYTES, file_name, match_files, photo_keys

PART = st.sampled_from(["a", "b", "cam1", "cam2"])
PATHS = st.lists(
    st.builds(
        lambda folders, stem, suffix: Path("/photos", *folders, stem + suffix),
        st.lists(PART, max_size=3),
        st.sampled_from(["0001", "0002", "a", "COCO_val2014_000000000001", "000000000001"]),
        st.sampled_from([".jpg", ".png"]),
    ),
    max_size=12,
    unique=True,
)


def keys(*paths: str) -> list[str]:
    return photo_keys([Path(path) for path in paths])


def test_a_stem_that_is_alone_is_the_key() -> None:
    assert keys("/p/a/1.jpg", "/p/a/2.jpg", "/p/b/3.jpg") == ["1", "2", "3"]
    assert keys("/p/COCO_val2014_000000262148.jpg") == ["000000262148"]


def test_folders_tell_one_stem_apart() -> None:
    assert keys("/p/cam1/0001.jpg", "/p/cam2/0001.jpg", "/p/cam2/0002.jpg") == [
        *("cam1/0001", "cam2/0001", "0002")
    ]
    assert keys("/p/a/x/1.npy", "/p/b/x/1.npy", "/p/b/y/1.npy") == ["a/x/1", "b/x/1", "y/1"]
    assert keys("/x/1.jpg", "/a/x/1.jpg") == ["x/1", "a/x/1"]


def test_a_relative_path_has_its_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cam1").mkdir()
    monkeypatch.chdir(tmp_path / "cam1")
    assert keys("0001.jpg", "../cam2/0001.jpg") == ["cam1/0001", "cam2/0001"]
    assert match_files(["cam1/0001.jpg"], [Path("0001.jpg")])[0] == [Path("0001.jpg")]


def test_names_of_one_photo_give_one_key() -> None:
    """Of COCO's two namings, of the numbers that GQA has from Visual Genome, of two formats."""
    assert keys(
        "/d/coco/val2014/COCO_val2014_000000262148.jpg", "/d/coco/train2017/000000262148.jpg"
    ) == ["000000262148", "000000262148"]
    assert keys("/d/vg/VG_100K/2345.jpg", "/d/gqa/images/2345.jpg") == ["2345", "2345"]
    assert keys("/p/a.jpg", "/p/a.png") == ["a", "a"]
    assert keys("/d/vg/VG_100K/2345.jpg", "/d/mine/2345.jpg") == ["VG_100K/2345", "mine/2345"]
    assert keys("/p/a.jpg", "/p/a.png", "/q/a.jpg") == ["p/a", "p/a", "q/a"]


@given(PATHS)
@settings(max_examples=150)
def test_photos_of_two_folders_never_share_a_key(paths: list[Path]) -> None:
    found = photo_keys(paths)
    for path, key in zip(paths, found, strict=True):
        *folders, last = key.split("/")
        assert last == path.stem.removeprefix("COCO_val2014_")
        assert path.parent.parts[len(path.parent.parts) - len(folders) :] == tuple(folders)
        for other, its_key in zip(paths, found, strict=True):
            if other.stem == path.stem and other.parent != path.parent:
                assert key != its_key
    assert sorted(found) == sorted(photo_keys(sorted(paths)))


def match(names: list[str], *files: str) -> tuple[list[str | None], dict[str, str]]:
    found, reasons = match_files(names, [Path(file) for file in files])
    return [None if path is None else path.as_posix() for path in found], reasons


CAMERAS = ("/p/cam1/0001.jpg", "/p/cam1/0002.jpg", "/p/cam2/0001.jpg", "/p/cam2/0002.jpg")


def test_the_longest_common_end_decides() -> None:
    names = ["cam2/0001.jpg", "cam1/0001.jpg", "cam2\\0002.jpg", "./cam1//0002.jpg"]
    found, reasons = match(names, *CAMERAS)
    assert found == [CAMERAS[2], CAMERAS[0], CAMERAS[3], CAMERAS[1]]
    assert not reasons
    assert match(["C:\\d\\cam1\\0001.jpg"], *CAMERAS)[0] == [CAMERAS[0]]
    assert match(["1.jpg"], "/p/deep/down/1.jpg")[0] == ["/p/deep/down/1.jpg"]


def test_what_is_ambiguous_is_named_and_not_guessed() -> None:
    found, reasons = match(["0001.jpg", "cam1/0002.jpg"], *CAMERAS)
    assert found == [None, CAMERAS[1]]
    assert "several files" in reasons["0001.jpg"]
    found, reasons = match(["x/cam1/0001.jpg", "y/cam1/0001.jpg"], *CAMERAS[:1])
    assert found == [None, None]
    assert all("both mean /p/cam1/0001.jpg" in reason for reason in reasons.values())
    assert match(["1.jpg", "a/1.jpg"], "/p/a/1.jpg")[0] == [None, None]


def test_a_file_of_another_folder_is_not_taken() -> None:
    found, reasons = match(["cam2/0001.jpg", "cam1/0001.jpg"], CAMERAS[0])
    assert found == [None, CAMERAS[0]]
    assert "another folder, /p/cam1" in reasons["cam2/0001.jpg"]
    found, reasons = match(["gone.jpg", "", "../../../etc/passwd"], "/p/a.jpg", "/p/passwd")
    assert found == [None, None, None]
    assert reasons["gone.jpg"] == "no file has that name"
    assert set(reasons) == {"gone.jpg", "", "../../../etc/passwd"}


def test_a_name_that_comes_twice_is_one_name() -> None:
    names = ["cam1/0001.jpg", "cam1/0001.jpg", "cam1\\0001.jpg"]
    assert match(names, *CAMERAS)[0] == [CAMERAS[0]] * 3


@given(PATHS, st.lists(st.lists(PART, max_size=3), max_size=6))
@settings(max_examples=150)
def test_a_match_is_a_photo_that_was_found(paths: list[Path], folders: list[list[str]]) -> None:
    names = [str(PurePosixPath(*parts, "0001.jpg")) for parts in folders]
    names += [str(path.relative_to("/photos")) for path in paths]
    found, reasons = match_files(names, paths)
    for name, path in zip(names, found, strict=True):
        if path is None:
            assert reasons[name]
            continue
        parts = PurePosixPath(name).parts
        assert path in paths
        assert path.parts[-min(2, len(parts)) :] == parts[-2:]
    owners = {path: name for name, path in zip(names, found, strict=True) if path}
    assert all(owners[path] == name for name, path in zip(names, found, strict=True) if path)


def test_a_key_that_is_a_file_name_stays_as_it_is() -> None:
    for key in ("COCO_val2014_000000262148", "n123", "ü b", "2345.x", "a~b"):
        assert file_name(key, ".npy") == f"{key}.npy"
    assert file_name("cam1/0001", ".npy") == "cam1%2F0001.npy"
    assert file_name("..", ".npy") == "%2E..npy"
    assert file_name("100%", ".npz") == "100%25.npz"
    assert file_name("a\ud800", ".npy") == "a%ED%A0%80.npy"


TEXT = st.text(st.characters(codec=None), min_size=1, max_size=400)


@given(st.sets(TEXT, max_size=20))
@settings(max_examples=100)
def test_every_key_has_a_file_name_of_its_own(keys: set[str]) -> None:
    long = {"x" * 400 + key for key in keys}
    names = [file_name(key, ".npy") for key in keys | long]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) <= NAME_BYTES
        assert not {"/", "\0", "\n", "\\"} & set(name)
        assert not name.startswith(".")
