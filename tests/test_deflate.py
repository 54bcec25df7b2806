"""RFC 7692: compressed messages, from its own examples to what no compressor would make."""

import json
import random
import threading
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as PeerFrame
from websockets.protocol import State

from chatserver.errors import InvalidFrame
from chatserver.wire import Event, Frame, Parser, Ping, encode
from chatserver.wire.deflate import MAX_ENDS, MIN_SIZE, Inflater, deflate

LIMIT = 64 * 1024
TAIL = b"\x00\x00\xff\xff"
NO_MASK = bytes(4)
WINDOWS = range(9, 16)
JSON = json.dumps([{"room": f"r{n % 7}", "text": "hi " * (n % 9), "n": n} for n in range(400)])


def inflated(data: bytes, limit: int = LIMIT, size: int = 0) -> bytes:
    """What a message says that comes in pieces of this size, or in one."""
    inflater = Inflater(limit)
    size = size or max(len(data), 1)
    pieces = [inflater.feed(data[start : start + size]) for start in range(0, len(data), size)]
    return b"".join(pieces) + inflater.end()


def parsed(*wire: bytes, limit: int = LIMIT) -> list[Event]:
    parser = Parser(limit, 16, compressed=True)
    events = []
    for data in wire:
        parser.feed(data)
        while (event := parser.next()) is not None:
            events.append(event)
    return events


def compressed(data: bytes, level: int = -1, strategy: int = 0, memory: int = 8) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def client_frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([first]) + length + NO_MASK + payload


# What a client sends


@pytest.mark.parametrize(
    ("wire", "texts"),
    [
        ("c187 00000000 f248cdc9c90700", ["Hello"]),
        ("4183 00000000 f248cd 8084 00000000 c9c90700", ["Hello"]),
        ("c18b 00000000 000500faff48656c6c6f00", ["Hello"]),
        ("c188 00000000 f348cdc9c9070000", ["Hello"]),
        ("c18d 00000000 f248050000 00ffffcac9c90700", ["Hello"]),
        ("c181 00000000 00", [""]),
        ("c187 37fa213d c5b2ecf4fefd21", ["Hello"]),
        ("c187 00000000 f248cdc9c90700 8185 00000000 48656c6c6f", ["Hello", "Hello"]),
    ],
    ids=[
        "7.2.3.1 one block",
        "7.2.3.1 two frames",
        "7.2.3.3 a block without compression",
        "7.2.3.4 a block with BFINAL",
        "7.2.3.5 two blocks",
        "7.2.3.6 nothing",
        "5.3 under a mask",
        "6.1 one without compression behind",
    ],
)
def test_the_examples_of_rfc_7692(wire: str, texts: list[str]) -> None:
    data = bytes.fromhex(wire)
    assert parsed(data) == texts
    assert parsed(*(data[index : index + 1] for index in range(len(data)))) == texts


def test_7_2_3_2_a_message_that_refers_to_the_one_before_cannot_be_inflated() -> None:
    # With client_no_context_takeover (7.1.1.2) there is nothing that it could refer to.
    first, second = "c187 00000000 f248cdc9c90700", "c185 00000000 f200110000"
    assert parsed(bytes.fromhex(first)) == ["Hello"]
    with pytest.raises(InvalidFrame) as caught:
        parsed(bytes.fromhex(first + second))
    assert caught.value.code == 1007


@pytest.mark.parametrize(
    "wire",
    [
        "8182 00000000 6869 | c0",
        "4181 00000000 f2 | c0",
        "0181 00000000 61 | c0",
        "| c8",
        "| c9",
        "| ca",
        "| e1",
        "| d1",
        "| a1",
    ],
    ids=[
        "6.1 on a continuation of nothing",
        "6.1 on a continuation of a compressed message",
        "6.1 on a continuation of a message that isn't compressed",
        "6.1 on a close",
        "6.1 on a ping",
        "6.1 on a pong",
        "RFC 6455, 5.2 RSV2 besides",
        "RFC 6455, 5.2 RSV3 besides",
        "RFC 6455, 5.2 RSV2 instead",
    ],
)
def test_where_rsv1_may_not_stand(wire: str) -> None:
    good, bad = (bytes.fromhex(part) for part in wire.split("|"))
    parsed(good)
    with pytest.raises(InvalidFrame) as caught:
        parsed(good + bad + b"\x80")
    assert caught.value.code == 1002


def test_6_1_a_ping_among_compressed_fragments() -> None:
    data = bytes.fromhex("4183 00000000 f248cd 8982 00000000 6869 8084 00000000 c9c90700")
    assert parsed(data) == [Ping(b"hi"), "Hello"]


@pytest.mark.parametrize("cut", [0, 1, 5, 7])
def test_6_1_frames_without_a_byte(cut: int) -> None:
    data = bytes.fromhex("f248cdc9c90700")
    frames = [(0x41, b""), (0x00, data[:cut]), (0x00, b""), (0x00, data[cut:]), (0x80, b"")]
    assert parsed(b"".join(client_frame(*frame) for frame in frames)) == ["Hello"]


@pytest.mark.parametrize("size", [1, 2, 3, 1023, 1024, 1025, 0])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_7_2_2_a_message_is_inflated_wherever_it_is_cut(size: int, level: int) -> None:
    data = compressed(JSON.encode(), level=level)
    assert inflated(data, size=size) == JSON.encode()


def test_7_2_3_4_last_blocks_anywhere() -> None:
    last = zlib.compress(b"some text, ", 9)[2:-4]
    for size in (0, 1, 2, 3, 5):
        assert inflated(last * MAX_ENDS + b"\x00", size=size) == b"some text, " * MAX_ENDS


def test_last_blocks_without_number_are_refused() -> None:
    """Each costs as much as a short message does, so one is not to consist of them."""
    for size in (0, 1, 5):
        with pytest.raises(InvalidFrame) as caught:
            inflated(b"\x03\x00" * (MAX_ENDS + 1), size=size)
        assert caught.value.code == 1008


@pytest.mark.parametrize(
    "data",
    ["07", "000500ffff48656c6c6f", "f348cdc9c9070007", "f200110000"],
    ids=["a block of no type", "a length that isn't confirmed", "behind a good one", "a distance"],
)
def test_7_2_2_what_cannot_be_inflated_is_refused(data: str) -> None:
    for size in (0, 1):
        with pytest.raises(InvalidFrame) as caught:
            inflated(bytes.fromhex(data), size=size)
        assert caught.value.code == 1007


def test_random_bytes_are_inflated_or_refused_and_nothing_else() -> None:
    generator = random.Random(7692)
    codes = set()
    for _ in range(2000):
        try:
            inflated(generator.randbytes(generator.randrange(1, 60)), limit=100)
            codes.add(0)
        except InvalidFrame as error:
            codes.add(error.code)
    assert codes == {0, 1007, 1009}


def test_text_is_checked_as_it_is_inflated() -> None:
    # RFC 6455, 8.1: long before the message's end.
    data = compressed(b"\xff" + JSON.encode())
    with pytest.raises(InvalidFrame) as caught:
        parsed(client_frame(0x41, data[:200]))
    assert caught.value.code == 1007
    data = compressed("\u20ac".encode()[:2])
    with pytest.raises(InvalidFrame) as caught:
        parsed(client_frame(0xC1, data))
    assert caught.value.code == 1007
    assert parsed(client_frame(0xC2, data)) == ["\u20ac".encode()[:2]]


# Limits


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_message_may_be_as_big_as_the_limit_once_inflated(size: int) -> None:
    data = compressed(bytes(1000))
    assert inflated(data, limit=1000, size=size) == bytes(1000)
    with pytest.raises(InvalidFrame) as caught:
        inflated(data, limit=999, size=size)
    assert caught.value.code == 1009


def test_the_limit_holds_across_last_blocks() -> None:
    block = zlib.compress(bytes(100))[2:-4]
    assert inflated(block * 5 + b"\x00", limit=500) == bytes(500)
    with pytest.raises(InvalidFrame) as caught:
        inflated(block * 5 + b"\x00", limit=499)
    assert caught.value.code == 1009


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = compressed(bytes(50_000_000), level=9)
    assert len(bomb) < LIMIT
    wire = b"\xc2\xfe" + len(bomb).to_bytes(2) + NO_MASK + bomb
    parser = Parser(LIMIT, 16, compressed=True)
    tracemalloc.start()
    try:
        parser.feed(wire)
        with pytest.raises(InvalidFrame) as caught:
            parser.next()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == 1009
    assert peak < 8 * LIMIT


@pytest.mark.parametrize("limit", [LIMIT, 1 << 18])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED])
def test_what_cannot_be_compressed_may_be_longer_than_the_limit(limit: int, strategy: int) -> None:
    # From 0x90 on a byte takes nine bits in a block with fixed codes (RFC 1951, 3.2.6), the
    # worst that it can meet.
    lowest = 0x90 if strategy == zlib.Z_FIXED else 0
    noise = bytes(random.Random(1).choices(range(lowest, 256), k=limit))
    data = compressed(noise, strategy=strategy, memory=1)
    assert len(data) > limit
    wire = b"\xc2\xff" + len(data).to_bytes(8) + NO_MASK + data
    assert parsed(wire, limit=limit) == [noise]


def test_a_message_much_longer_than_the_limit_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidFrame) as caught:
        parsed(b"\xc2\xff" + (LIMIT * 5 // 4).to_bytes(8))
    assert caught.value.code == 1009


# What a client gets


@pytest.mark.parametrize("window_bits", WINDOWS)
def test_7_1_2_1_a_message_needs_no_larger_window_than_agreed(window_bits: int) -> None:
    # Repetitions at every distance, which a smaller window could not reach.
    words = random.Random(2).choices([word.encode() for word in JSON.split()], k=6000)
    payload = b" ".join(words)
    data = deflate(payload, window_bits)
    assert len(data) < len(payload)
    receiver = zlib.decompressobj(wbits=-window_bits)
    assert receiver.decompress(data + TAIL) == payload


def test_a_larger_window_is_made_use_of() -> None:
    payload = random.Random(3).randbytes(2000) * 4
    assert len(deflate(payload, 15)) < 3000 < 8000 < len(deflate(payload, 9))


@pytest.mark.parametrize("window_bits", WINDOWS)
def test_7_1_1_1_no_message_refers_to_one_before(window_bits: int) -> None:
    payloads = [b"the very same words " * 20, b"the very same words " * 20, b"", b"words " * 99]
    for payload in payloads * 3:
        # A receiver of its own for each, which has seen nothing before.
        receiver = zlib.decompressobj(wbits=-window_bits)
        assert receiver.decompress(deflate(payload, window_bits) + TAIL) == payload
    assert deflate(payloads[0], window_bits) == deflate(payloads[1], window_bits)


def test_7_2_1_the_tail_is_taken_off() -> None:
    assert deflate(b"Hello", 15) == bytes.fromhex("f248cdc9c90700")
    for size in (0, 1, 255, 65535, 65536, 200_000):
        assert not deflate(bytes(size), 15).endswith(TAIL)
        assert deflate(bytes(size), 15) != b""


def test_a_receiver_with_context_takeover_reads_it_too() -> None:
    receiver = zlib.decompressobj(wbits=-15)
    for number in range(20):
        payload = f"{number} {JSON}".encode()
        assert receiver.decompress(deflate(payload, 15) + TAIL) == payload


def test_threads_share_a_compressor() -> None:
    failures: list[bytes] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        generator = random.Random(seed)
        start.wait(5)
        for _ in range(150):
            words = b" ".join(generator.choices([b"one", b"two", b"three"], k=2000))
            bits = generator.choice([9, 15])
            if zlib.decompress(deflate(words, bits) + TAIL + b"\x03\x00", -15) != words:
                failures.append(words)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert failures == []


def test_a_message_goes_out_compressed_where_that_is_worth_it() -> None:
    short, long = "x" * (MIN_SIZE - 1), "x" * MIN_SIZE
    assert encode(short, 15) == encode(short)
    assert encode(long, 0)[:1] == b"\x81"
    wire = encode(long, 15)
    assert wire[0] == 0xC1
    assert wire[1] == len(wire) - 2 < 20
    assert encode(long.encode(), 15)[0] == 0xC2
    assert zlib.decompressobj(wbits=-15).decompress(wire[2:] + TAIL) == long.encode()


def test_6_1_what_does_not_get_smaller_goes_out_as_it_is() -> None:
    noise = random.Random(4).randbytes(1000)
    assert encode(noise, 15) == encode(noise)


def test_each_window_has_its_wire() -> None:
    frame = Frame(random.Random(5).randbytes(2000) * 4)
    wires = {bits: frame.wire(bits) for bits in (0, 9, 15)}
    assert len(set(wires.values())) == 3
    assert all(frame.wire(bits) is wire for bits, wire in wires.items())
    assert frame.size == 8000


# Against another implementation


@pytest.mark.parametrize("window_bits", WINDOWS)
def test_websockets_and_we_understand_each_other(window_bits: int) -> None:
    generator = random.Random(window_bits)
    client = ClientProtocol("ws://x", state=State.OPEN)  # type: ignore[arg-type]
    client.extensions = [PerMessageDeflate(True, True, window_bits, window_bits)]
    parser = Parser(LIMIT, 16, compressed=True)
    for _ in range(30):
        size = generator.choice([0, 1, 200, 3000, 20_000])
        text = "".join(generator.choices("ab\u00e9\u20ac", k=size))
        data = text.encode()
        cuts = sorted(generator.choices(range(len(data) + 1), k=generator.randrange(3)))
        bounds = [0, *cuts, len(data)]
        for index, (start, end) in enumerate(pairwise(bounds)):
            send = client.send_text if index == 0 else client.send_continuation
            send(data[start:end], fin=index == len(bounds) - 2)
        parser.feed(b"".join(client.data_to_send()))
        assert parser.next() == text
        assert parser.next() is None

        client.receive_data(encode(text, window_bits))
        (answer,) = client.events_received()
        assert isinstance(answer, PeerFrame)
        assert bytes(answer.data) == data
        assert client.parser_exc is None
