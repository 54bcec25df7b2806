"""What an exception means for a connection."""

import asyncio

import pytest
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from chatserver.endpoints.outcome import as_refusal, close_for, is_departure, is_ours
from chatserver.errors import (
    CLOSE_CODES,
    BrokerUnavailable,
    InvalidHandshake,
    InvalidMessage,
    InvalidToken,
    KeysUnavailable,
    close_reason,
)


@pytest.mark.parametrize(
    ("error", "code", "ours"),
    [
        (InvalidMessage("x"), 1007, False),
        (InvalidMessage("x", code=1003), 1003, False),
        (InvalidToken("x"), 4401, False),
        (InvalidHandshake("x"), 4422, False),
        (WebSocketException(4000, "x"), 4000, False),
        (HTTPException(403, "x"), 4403, False),
        (WebSocketDisconnect(1001, "x"), 1001, False),
        (ValueError("x"), 1011, True),
        (BrokerUnavailable("x"), 1013, False),
        (asyncio.CancelledError(), 1012, True),
    ],
)
def test_close(error: BaseException, code: int, ours: bool) -> None:
    assert close_for(error)[0] == code
    assert is_ours(error) is ours


def test_a_departure() -> None:
    assert is_departure(WebSocketDisconnect(1001))
    assert is_departure(BaseExceptionGroup("", [WebSocketDisconnect(1001)]))
    assert not is_departure(BaseExceptionGroup("", [WebSocketDisconnect(1001), ValueError()]))
    assert not is_departure(OSError())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidToken("x"), 401),
        (InvalidToken("x", status=403), 403),
        (InvalidHandshake("x"), 422),
        (HTTPException(418), 418),
        (KeysUnavailable("x"), 503),
    ],
)
def test_refusal(error: BaseException, status: int) -> None:
    refusal = as_refusal(error)
    assert isinstance(refusal, HTTPException)
    assert refusal.status_code == status


def test_what_hinders_the_verifier_is_not_for_the_client() -> None:
    refusal = as_refusal(KeysUnavailable("http://10.0.0.1/keys: connection refused"))
    assert isinstance(refusal, HTTPException)
    assert "10.0.0.1" not in refusal.detail


def test_a_fault_is_no_refusal() -> None:
    assert as_refusal(ValueError()) is None
    assert as_refusal(None) is None


def test_the_table_of_close_codes() -> None:
    for code, row in CLOSE_CODES.items():
        assert row.code == code
        assert row.meaning.endswith(".")
        assert (row.sender == "nobody") == (code in (1005, 1006))


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("x" * 200, 123), ("é" * 100, 122), ("🎉" * 50, 120), ("\ud800", 1)]
)
def test_a_reason_fits_into_a_close_frame(text: str, size: int) -> None:
    assert len(close_reason(text).encode()) == size
