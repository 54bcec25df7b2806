"""How fast are we, and how safe, beside others on the same machine?

`README.md` here tells the method. `make bench` and `make bench-guards` run it. From the outside in:

- `__main__`: the command line
- `rounds`: who is measured when; `sitting`: one server, started, measured, stopped
- `servers`: the table of servers; `environments`: what they need; `regimes`: what is measured
- `load`: the generator `load.c` and its commands; `probes`: what its checked clients saw
- `guards`: the table of attacks on the server's guards; `attacks`: the attacks themselves
- `process`: a server's process: its core, its memory, its end
- `results`, `goals`, `tables`, `plots`: from measurements to what one reads

It is no part of the installed package. Only `progress` and `plots` need more than the standard
library, and only they import it.
"""
