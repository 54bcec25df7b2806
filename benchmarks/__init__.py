"""How fast and how safe is the server, compared with others on the same machine?

`README.md` describes the method. `make bench` and `make bench-guards` run it. From the top down:

- `__main__`: the command line
- `rounds`: the order of the measurements; `sitting`: one server is started, measured, stopped
- `servers`: the table of servers; `environments`: what they need; `regimes`: what is measured
- `load`: the generator `load.c` and its commands; `probes`: what its checked clients saw
- `guards`: the table of attacks on the server's guards; `attacks`: the attacks themselves
- `process`: a server's process: its core, its memory, its end
- `in_fastapi`: the memory of a connection in FastAPI, by the kind of its route; a program by itself
- `results`, `goals`, `tables`, `plots`: from measurements to tables and a plot

It is not part of the installed package. Only `progress`, `plots` and `in_fastapi` need more than
the standard library, and only they import it.
"""
