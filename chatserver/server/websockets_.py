"""All that the server uses of `websockets`: the negotiation of permessage-deflate (RFC 7692)."""

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

__all__ = ["negotiate"]

# Section 7.1.1: each message is compressed alone, so that one compressor can serve all clients.
DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)
# zlib can't make raw deflate for a window of 8 bits; `websockets` respects that from 17.2 on.
SMALLEST_WINDOW = 9


def negotiate(offers: str) -> tuple[str, int]:
    """Agree on the first offer of compression that is possible.

    Args:
        offers: The client's header `Sec-WebSocket-Extensions`.

    Returns:
        The agreed extension for the response's header, and the client's window for compressed
        messages, 9 to 15; an empty text and 0 if no offer is possible.

    Raises:
        ValueError: It is not a list of extensions (RFC 6455, section 9.1).
    """
    try:
        offered = parse_extension(offers)
    except InvalidHeader as error:
        raise ValueError(str(error)) from None
    for name, parameters in offered:
        if name == DEFLATE.name:
            try:
                agreed, extension = DEFLATE.process_request_params(parameters, [])
            except NegotiationError:
                continue
            if extension.local_max_window_bits >= SMALLEST_WINDOW:
                return build_extension([(name, agreed)]), extension.local_max_window_bits
    return "", 0
