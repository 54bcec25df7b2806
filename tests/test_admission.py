"""Admission: connections counted by server, address and user."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from chatserver.errors import TooManyConnections
from chatserver.hub import Admission
from chatserver.limits import Limits


def test_a_server_has_so_many_connections() -> None:
    admission = Admission(Limits(max_connections=2))
    assert admission.enter("a") is None
    assert admission.enter("b") is None
    refusal = admission.enter("c")
    assert refusal is not None
    assert refusal[0] == 503
    admission.leave("a")
    assert admission.enter("c") is None
    assert admission.counts.refused == 1


def test_an_address_has_so_many_connections() -> None:
    admission = Admission(Limits(max_address_connections=1))
    assert admission.enter("a") is None
    assert admission.enter("b") is None
    assert admission.enter("a") == (429, "There are 1 connections from your address already.")
    admission.leave("a")
    assert admission.enter("a") is None


def test_a_client_without_an_address_is_counted_for_the_server_only() -> None:
    admission = Admission(Limits(max_connections=3, max_address_connections=1))
    assert [admission.enter("") for _ in range(3)] == [None] * 3
    assert admission.enter("") is not None


def test_a_user_has_so_many_connections() -> None:
    admission = Admission(Limits(max_user_connections=2))
    admission.enter_user("ann")
    admission.enter_user("ann")
    admission.enter_user("bob")
    with pytest.raises(TooManyConnections, match="2 connections are open already"):
        admission.enter_user("ann")
    admission.leave_user("ann")
    admission.enter_user("ann")
    assert admission.counts.refused == 1


def test_without_limits_all_are_let_in_and_nothing_is_kept_of_them() -> None:
    admission = Admission(Limits(max_connections=0))
    for number in range(100):
        assert admission.enter(f"{number}") is None
        admission.enter_user(f"{number}")
    for number in range(100):
        admission.leave(f"{number}")
        admission.leave_user(f"{number}")
    assert (admission._sockets, dict(admission._addresses), dict(admission._users)) == (0, {}, {})


def test_threads_are_counted_alike() -> None:
    admission = Admission(Limits(max_connections=100))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: admission.enter(f"{n % 3}"), range(400)))
    assert answers.count(None) == 100


def test_a_server_that_stops_refuses_everyone() -> None:
    admission = Admission()
    assert admission.enter("127.0.0.1") is None
    admission.stopping = True
    assert admission.enter("127.0.0.1") == (503, "The server is restarting.")
    assert admission.counts.refused == 0  # no client went beyond a limit
