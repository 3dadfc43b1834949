"""What is shared, pages that are copied, and the files of the system they are read from."""

import mmap
from pathlib import Path

import pytest

from gradbook.parallel import isolation
from gradbook.parallel.isolation import Seen

SMAPS = """1000-3000 rw-p 00000000 00:00 0    [heap]
Size:                  8 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
VmFlags: rd wr
3000-9000 rw-p 00000000 00:00 0
Size:                 24 kB
Private_Dirty:        16 kB
"""


def test_who_sees_what():
    assert isolation.seen() == {
        "an object in memory": Seen(True, False),
        "the files that are open": Seen(True, False),
        "the working directory": Seen(True, False),
        "an environment variable": Seen(True, False),
        "the position in an open file": Seen(True, True),
        "memory mapped as shared": Seen(True, True),
        "a thread-local value": Seen(False, False),
        "the signals that are blocked": Seen(False, False),
    }


def test_as_many_pages_are_copied_as_are_written():
    assert isolation.copied_pages(600, [0, 1, 1, 77, 600]).private == [0, 1, 1, 77, 600]


@pytest.mark.parametrize("written", [[3, 2], [-1], [11], [0, 11]])
def test_pages_that_cannot_be_written(written):
    with pytest.raises(ValueError, match="written: must rise from 0 to at most 10"):
        isolation.copied_pages(10, written)


def test_reading_objects_copies_their_pages_and_reading_an_array_does_not():
    found = isolation.pages_copied_by_reading(100_000)
    # 24 bytes, which the allocator rounds up to 32; a few pages may be the child's already.
    assert found["list"] >= 0.95 * 100_000 * 32 / mmap.PAGESIZE
    assert found["array"] < found["list"] / 4


@pytest.mark.parametrize(("address", "pages"), [(0x1000, 1), (0x2FFF, 1), (0x3000, 4)])
def test_pages_of_a_mapping(address, pages):
    assert isolation.private_pages(SMAPS, address, 4096) == pages


@pytest.mark.parametrize("address", [0xFFF, 0x9000])
def test_an_address_in_no_mapping(address):
    with pytest.raises(ValueError, match="is in no mapping"):
        isolation.private_pages(SMAPS, address, 4096)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
def test_what_is_not_changed_is_not_taken_for_unseen():
    box = [0]
    assert isolation._both("a box", lambda v: box.__setitem__(0, v), lambda: box[0]) == (
        True,
        False,
    )
    with pytest.raises(RuntimeError, match="a stone: it was not changed"):
        isolation._both("a stone", lambda v: None, lambda: box[0])


def test_an_error_of_a_thread_comes_out():
    with pytest.raises(ZeroDivisionError):
        isolation._in_thread(lambda: 1 / 0)


def test_neighbours_of_a_mapping_are_not_counted_with_it():
    """Memory of the same kind on both sides would be one mapping with it."""
    regions = [isolation._guarded(pages) for pages in (3, 3, 3)]
    for region, _ in regions:
        region[mmap.PAGESIZE] = 1
    text = Path("/proc/self/smaps").read_text()
    assert [isolation.private_pages(text, first) for _, first in regions] == [1, 1, 1]
    for _, first in regions:
        assert f"\n{first:x}-{first + 3 * mmap.PAGESIZE:x} rw-p" in text


def test_bad_input():
    with pytest.raises(ValueError, match="pages: must be"):
        isolation.copied_pages(0, [0])
    with pytest.raises(ValueError, match="looks: must be"):
        isolation.copied_pages(3, [])
    for numbers in (0, -5):
        with pytest.raises(ValueError, match="numbers: must be"):
            isolation.pages_copied_by_reading(numbers)
