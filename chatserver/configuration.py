"""One call that configures an application from the settings.

app = Starlette(routes=[...], lifespan=lifespan)
configure(app)                              # from the environment: CHATSERVER_*
"""

from starlette.applications import Starlette

from chatserver.auth import OPEN_MODE, OPEN_ON_LOOPBACK, VerifiesTokens
from chatserver.brokers import Broker, broker_from_url
from chatserver.errors import InvalidSetting
from chatserver.hub import Hub
from chatserver.settings import Settings

__all__ = ["configure", "make_broker"]


def configure(app: Starlette, settings: Settings | None = None) -> Settings:
    """Give an application its verifier, allowed origins, hub and limits.

    They become `app.state.verifier`, `app.state.allowed_origins` and `app.state.hub`. Settings
    without a key for tokens mean open mode: for clients of this machine only, or for all clients
    with the setting `open_to_network`.

    Args:
        app: A Starlette or FastAPI application.
        settings: The settings; read from the environment if left out.

    Returns:
        The settings.

    Raises:
        InvalidSetting: A setting can't be used.
    """
    settings = settings or Settings.from_env()
    app.state.verifier = _verifier(settings)
    app.state.allowed_origins = settings.allowed_origins
    app.state.hub = Hub(
        make_broker(settings),
        limits=settings.limits(),
        rules=settings.rules,
    )
    return settings


def make_broker(settings: Settings) -> Broker:
    """The broker that the settings name; it is not connected yet.

    Raises:
        InvalidSetting: A package that it needs is missing.
    """
    try:
        return broker_from_url(
            settings.broker,
            history_size=settings.history_size,
            history_ttl=settings.history_ttl,
            history_memory=settings.history_memory,
        )
    except (ValueError, ModuleNotFoundError) as error:
        raise InvalidSetting(f"CHATSERVER_BROKER (--broker): {error}.") from None


def _verifier(settings: Settings) -> VerifiesTokens:
    if not settings.verifies_tokens:
        return OPEN_MODE if settings.open_to_network else OPEN_ON_LOOPBACK
    from chatserver.auth import Verifier

    return Verifier(
        secret=settings.token_secret,
        public_key=settings.token_public_key,
        jwks_url=settings.token_jwks_url,
        audience=settings.token_audience,
        issuer=settings.token_issuer,
        claim=settings.token_claim,
        leeway=settings.token_leeway,
    )
