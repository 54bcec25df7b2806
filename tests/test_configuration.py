"""The one call that gives an application what the settings say."""

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from chatserver import OPEN_MODE, Hub, Verifier, configure
from chatserver.auth import OPEN_ON_LOOPBACK, VerifiesTokens, mint
from chatserver.errors import InvalidSetting
from chatserver.settings import Settings

SECRET = "correct-horse-battery-staple-0123456789"


@pytest.mark.anyio
@pytest.mark.parametrize("app", [Starlette(), FastAPI()])
async def test_an_application_takes_all_from_the_environment(
    app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("CHATSERVER_ALLOWED_ORIGINS", "https://a.example,https://b.example")
    monkeypatch.setenv("CHATSERVER_MAX_MESSAGE_SIZE", "1234")
    monkeypatch.setenv("CHATSERVER_HISTORY_SIZE", "2")
    settings = configure(app)
    assert settings.history_size == 2
    verifier: VerifiesTokens = app.state.verifier
    identity = await verifier.verify(mint(SECRET, user="ann", ttl_seconds=60))
    assert identity is not None
    assert identity.user == "ann"
    assert app.state.allowed_origins == ("https://a.example", "https://b.example")
    hub: Hub = app.state.hub
    assert hub.limits.max_message_size == 1234
    for text in "abc":
        await hub.publish("room", text)
    assert len((await hub.history("room", limit=9)).publications) == 2


def test_without_a_key_it_is_open_to_this_machine_only() -> None:
    app = Starlette()
    configure(app, Settings())
    assert app.state.verifier is OPEN_ON_LOOPBACK
    configure(app, Settings(open_to_network=True))
    assert app.state.verifier is OPEN_MODE
    configure(app, Settings(token_secret=SECRET))
    assert isinstance(app.state.verifier, Verifier)


def test_a_bad_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", "short")
    with pytest.raises(InvalidSetting, match="CHATSERVER_TOKEN_SECRET"):
        configure(Starlette())
