"""The attacks of `guards`: each is a coroutine that gets a target, and returns its figures.

- `client`: the attacker's end, which does only what it is told
- `kernel`: what the kernel knows of both ends
- `target`: the server under attack: its log, its memory, whether its room still lives
- `rooms`: clients that harm others by how they read, fall silent, break off, or misbehave
- `handshakes`: requests without an end, and more connections than allowed
- `messages`: what one connection may send
- `ends`: SIGTERM

Every wait has a deadline, and every loop an end. A figure is None where what it counts never came.
"""
