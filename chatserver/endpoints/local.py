"""Whether a handshake comes from this machine: where open mode is for this machine only.

The addresses alone don't tell: a proxy on this machine connects to it from this machine, too. And
a foreign page can reach it under a name of its own that resolves to 127.0.0.1 (DNS rebinding).
"""

import ipaddress
import re

from starlette.types import Scope

__all__ = ["why_not_local"]

#: Headers by which proxies name their clients.
FORWARDED = re.compile(rb"forwarded|via|x-forwarded-.+|x-real-ip|.+-(client|connecting)-ip")
#: The addresses that test clients give.
IN_MEMORY = ("testclient", "testserver")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(?::[0-9]*)?", re.IGNORECASE)


def why_not_local(scope: Scope) -> str:
    """Why a handshake may come from another machine, in words; empty if it does not.

    The server's address and the client's must be of this machine and unreachable from others, no
    proxy may have passed it on, and the client must have asked for a name of this machine, if for
    any. Every browser names one, so there is no foreign page behind a client of HTTP/1.0 without.
    """
    for side in ("server", "client"):
        host, _port = scope.get(side) or ("", None)
        if not _is_local(host):
            return f"the {side} has the address {host!r}"
    for name, value in scope["headers"]:
        if FORWARDED.fullmatch(name):
            return f"a proxy has passed it on, with the header {name.decode('latin-1')!r}"
        if name == b"host" and not _names_this_machine(value.decode("latin-1")):
            return f"the header Host is {value[:80].decode('latin-1')!r}"
    return ""


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in IN_MEMORY  # and no Unix socket, where proxies connect
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _names_this_machine(header: str) -> bool:
    """Whether a header Host names localhost (RFC 6761, section 6.3) or an address of its own."""
    found = HOST.fullmatch(header)
    name = found[1].strip("[]").lower() if found else ""
    return name == "localhost" or name.endswith(".localhost") or _is_local(name)
