"""The product's story, told by real processes on this machine: ``valetkey demo``.

An identity provider (a key and a JWKS file), a broker, a collector, a sidecar and a ticketing API
that knows nothing of any of them but the broker's public keys. An agent without a credential makes
calls, the broker and the collector come and go, and each step says what was expected and what was
seen. The story holds only if every step does.
"""
