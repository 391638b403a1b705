"""``valetkey doctor`` says whether calls from this environment go through the sidecar.

Facts are gathered by `sidecar`, `runtimes` and `calls`, which do I/O with a time limit each, and
judged by `variables`, `no_proxy`, `certificates`, `trust` and `outcome`, which do none. A judgement
is a list of `findings.Finding`.
"""
