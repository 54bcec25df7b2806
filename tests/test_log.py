"""What members are still to get: places, slices, and what is dropped."""

from random import Random

import pytest

from chatserver.connection import MESSAGE_OVERHEAD
from chatserver.hub.log import Log, joined
from chatserver.publication import Frame
from chatserver.wire import frames as wire_frames


def filled(*texts: str, window_bits: int | None = 0) -> Log:
    log = Log(window_bits)
    for text in texts:
        log.append(Frame(text))
    return log


def test_a_log_of_bytes_cuts_what_lies_between_two_places() -> None:
    log = filled("one", "two", "three")
    assert (log.begin, log.end) == (0, 3)
    assert log.slice(0, 3) == b"\x81\x03one\x81\x03two\x81\x05three"
    assert log.slice(1, 2) == b"\x81\x03two"
    assert log.slice(2, 3) == b"\x81\x05three"


def test_a_log_of_frames_cuts_the_frames_themselves() -> None:
    log, frames = Log(None), [Frame(text) for text in ("a", "b", "c")]
    sizes = [log.append(frame) for frame in frames]
    assert sizes == [1 + MESSAGE_OVERHEAD] * 3
    cut = log.slice(1, 3)
    assert isinstance(cut, tuple)
    assert all(mine is frame for mine, frame in zip(cut, frames[1:], strict=True))


def test_rows_at_one_place_share_the_slice() -> None:
    log = filled("a", "b")
    assert log.slice(0, 2) is log.slice(0, 2)


def test_a_slice_is_not_changed_by_what_comes_later() -> None:
    log = filled("a")
    early = log.slice(0, 1)
    log.append(Frame("b"))
    log.trim(1)
    assert early == b"\x81\x01a"
    assert log.slice(1, 2) == b"\x81\x01b"


def test_what_all_have_is_dropped() -> None:
    log = filled("one", "two", "three")
    assert log.size == 5 + 5 + 7
    assert log.trim(2) == 10
    assert (log.begin, log.end, log.size) == (2, 3, 7)
    assert log.trim(2) == 0
    assert log.trim(3) == 7
    assert (log.begin, log.size) == (3, 0)
    assert log.append(Frame("x")) == 3
    assert log.slice(3, 4) == b"\x81\x01x"


@pytest.mark.parametrize(
    ("place", "most", "until"),
    [(0, 1000, 4), (0, 20, 4), (0, 19, 3), (0, 10, 2), (0, 1, 1), (3, 1, 4), (1, 14, 3), (4, 9, 4)],
)
def test_until_is_so_many_bytes_further_and_one_publication_at_least(
    place: int, most: int, until: int
) -> None:
    assert filled("abc", "abc", "abc", "abc").until(place, most) == until


def test_until_is_the_same_after_a_trim() -> None:
    log = filled("abc", "abc", "abc", "abc")
    log.trim(1)
    assert log.until(1, 10) == 3
    assert log.until(1, 14) == 3
    assert log.until(1, 15) == 4


def test_what_cannot_be_compressed_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled("before", window_bits=15)
    size = log.size

    def broken(payload: bytes, window_bits: int) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(wire_frames, "deflate", broken)
    with pytest.raises(ZeroDivisionError):
        log.append(Frame("x" * 1000))
    assert (log.end, log.size) == (1, size)
    log.append(Frame("after"))
    assert log.slice(0, 2) == Frame("before").wire() + Frame("after").wire()


@pytest.mark.parametrize("window_bits", [None, 0, 15])
def test_slices_against_a_list(window_bits: int | None) -> None:
    """Whatever is appended and dropped, a slice is what a list of frames would have there."""
    random = Random(7)
    log, frames, begin = Log(window_bits), list[Frame](), 0
    for _ in range(2000):
        chance = random.random()
        if chance < 0.5:
            frames.append(Frame(random.choice("ab") * random.choice([0, 1, 125, 126, 300])))
            log.append(frames[-1])
        elif chance < 0.6:
            begin = random.randint(begin, len(frames))
            log.trim(begin)
        else:
            place = random.randint(begin, len(frames))
            until = random.randint(place, len(frames))
            assert log.slice(place, until) == joined(frames[place:until], window_bits)
        assert (log.begin, log.end) == (begin, len(frames))
        assert (log.size == 0) is (begin == len(frames))
