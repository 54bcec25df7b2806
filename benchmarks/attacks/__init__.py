"""The attacks of `guards`: each is a coroutine that takes a target, and returns its figures.

- `client`: the attacker's client, which does nothing by itself
- `kernel`: what the kernel knows of the connections to a server
- `target`: the server under attack: its log, its memory, and whether its room still works
- `rooms`: clients that harm others: they don't read, fall silent, disconnect, or misbehave
- `handshakes`: requests without an end, and more connections than allowed
- `messages`: what one connection may send
- `ends`: SIGTERM

Every wait has a deadline, and every loop an end. A figure is None if what it counts did not happen.
"""
