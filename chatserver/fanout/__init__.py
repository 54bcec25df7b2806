"""The fan-out: from a publication to every member of its channel.

loop      `Fanout`, the members that live on one event loop, and the turns in which they
are written to
member    a connection's place in a channel, and the plan by which a channel is written
batch     publications on their way: encoded once per wire format, and joined
"""

from chatserver.fanout.batch import Shared
from chatserver.fanout.loop import Fanout, running_loop
from chatserver.fanout.member import Member

__all__ = ["Fanout", "Member", "Shared", "running_loop"]
