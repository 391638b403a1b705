"""Differential fuzzing: nothing goes upstream that another reader reads differently.

- `datapath` runs the sidecar's own data path in this process, without sockets: bytes in, bytes out.
- `readers` are the second opinions: h11, llhttp with its leniency on, Python's http.server, nginx.
- `requests` and `answers` make inputs; `properties` says what must hold for each.

The tests play a bounded number of inputs that is always the same; ``python -m tests.fuzz`` (`make
fuzz`) plays new ones for as long as it is told to.
"""
