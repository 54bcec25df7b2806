"""The hub: this process's connections by channel, and the fan-out to them.

hub             its face: publish, subscribe, and the registry of connections
subscription    what is held, old or a gap: decided with values alone
following       what is followed at the broker, as subscribers come and go
fanout          rows of members, written to turn by turn
log             what a channel's members are still to get
admission       who is let in: connections counted by server, address and user
"""

from chatserver.hub.admission import ADMISSION, Admission
from chatserver.hub.fanout import Answer, OnLost
from chatserver.hub.hub import Hub, Statistics
from chatserver.hub.subscription import Subscribed

__all__ = ["ADMISSION", "Admission", "Answer", "Hub", "OnLost", "Statistics", "Subscribed"]
