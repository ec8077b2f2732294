"""One bad input is its own fault; many in a row, or most of all, stop the work."""

import pytest

from gridvlp.run.skip_list import SkipList, TooManySkipped


def test_a_row_of_the_limit_stops() -> None:
    skips = SkipList(3, "is the disk there?")
    for name in "ab":
        skips.add(name, "gone")
    skips.take()
    for name in "cd":
        skips.add(name, "gone")
    with pytest.raises(TooManySkipped, match=r"3 inputs in a row and 5 of 6 .* Is the disk there"):
        skips.add("e", "gone")
    assert list(skips.reasons) == list("abcde")


def test_a_majority_of_twice_the_limit_stops() -> None:
    skips = SkipList(10)
    for number in range(6):
        skips.add(f"{number}", "odd")
        skips.add(f"{number}'", "odd")
        skips.take()
    skips.add("12", "odd")  # 13 of 19: too few to tell
    with pytest.raises(TooManySkipped, match="14 of 20"):
        skips.add("13", "odd")


def test_a_minority_and_copies_never_stop() -> None:
    skips = SkipList(5)
    for number in range(1000):
        skips.note(f"copy {number}", "a copy")
    for number in range(1000):
        skips.take()
        skips.add(f"{number}", "damaged: /a/b")
    assert len(skips) == 2000
    assert skips.kinds() == [("a copy", 1000), ("damaged", 1000)]


def test_no_limit_never_stops() -> None:
    skips = SkipList(0)
    for number in range(1000):
        skips.add(f"{number}", "damaged")
    assert len(skips) == 1000


def test_names_that_are_not_utf8_can_be_printed_and_written() -> None:
    skips = SkipList(2)
    skips.add("a\udcff.jpg", "not \ud800")
    assert skips.reasons == {"a\\udcff.jpg": "not \\ud800"}
    with pytest.raises(TooManySkipped) as stop:
        skips.add("b\udcff.jpg", "gone")
    assert str(stop.value).encode()
