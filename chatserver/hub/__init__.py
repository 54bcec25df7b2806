"""The hub: this process's connections by channel, and the fan-out to them.

hub             publish, subscribe, and the registry of connections
subscription    decides what is held, old or a gap, without I/O
following       which channels the broker delivers here, as subscribers come and go
fanout          the turns of one event loop, in which its members are written to
rows            the members of a channel, in rows
presence        the clients in a channel, and the users behind them
log             publications that some members of a channel still lack
admission       counts connections by server, address and user, and refuses those beyond the limits
"""

from chatserver.hub.admission import ADMISSION, Admission
from chatserver.hub.hub import Hub, Statistics
from chatserver.hub.presence import Presence, PresentUser
from chatserver.hub.rows import Answer, OnLost
from chatserver.hub.subscription import Subscribed

__all__ = [
    "ADMISSION",
    "Admission",
    "Answer",
    "Hub",
    "OnLost",
    "Presence",
    "PresentUser",
    "Statistics",
    "Subscribed",
]
