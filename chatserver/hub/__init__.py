"""The hub: this process's connections by channel, and the fan-out to them.

hub             its face: publish, subscribe, and the registry of connections
subscription    what is held, old or a gap: decided with values alone
following       what is followed at the broker, as subscribers come and go
fanout          the turns of one event loop, in which its members are written to
rows            where the members of a channel stand
log             what a channel's members are still to get
admission       who is let in: connections counted by server, address and user
"""

from chatserver.hub.admission import ADMISSION, Admission
from chatserver.hub.hub import Hub, Statistics
from chatserver.hub.rows import Answer, OnLost
from chatserver.hub.subscription import Subscribed

__all__ = ["ADMISSION", "Admission", "Answer", "Hub", "OnLost", "Statistics", "Subscribed"]
