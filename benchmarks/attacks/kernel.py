"""What the kernel knows of connections, and neither side can tell by itself; for Linux."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["Connection", "connections", "now", "sockets"]


class Connection(NamedTuple):
    """What the kernel knows of one connection to a server."""

    inode: int  # of the server's socket; 0 once the server has closed it
    queued: int  # bytes that the server wrote and the client has not read


def connections(table: str, port: int) -> dict[int, Connection]:
    """The connections to a server's port, by the client's port; `table` is `/proc/net/tcp`."""
    inodes, queued = dict[int, int](), dict[int, int]()
    for line in table.splitlines()[1:]:
        fields = line.split()
        local, remote = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        sent, unread = (int(size, 16) for size in fields[4].split(":"))
        if local == port and remote:
            queued[remote] = queued.get(remote, 0) + sent
            inodes[remote] = int(fields[9])
        elif remote == port:
            queued[local] = queued.get(local, 0) + unread
    return {each: Connection(inodes.get(each, 0), size) for each, size in queued.items()}


def now(port: int) -> dict[int, Connection]:
    """The same, as it is now. It may take 30 ms, because it reads all connections of the kernel."""
    return connections(Path("/proc/net/tcp").read_text(), port)


def sockets(pid: int) -> set[int]:
    """The inodes of the sockets that a process has."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kind, _, inode = os.readlink(path).partition(":")
            if kind == "socket":
                found.add(int(inode[1:-1]))
    return found
