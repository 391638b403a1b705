"""``Txn-Token`` (draft-ietf-oauth-transaction-tokens), for services of one trust domain."""

from __future__ import annotations

from valetkey.contracts import oauth
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Permit


class TxnTokenInjector:
    """One token in the Txn-Token header; ``Authorization`` stays empty."""

    token_type = "N_A"  # noqa: S105 - RFC 8693 §2.2.1: it is no access token
    requested = oauth.TOKEN_TYPE_TXN

    def line(self, token: Secret) -> bytes:
        return b"txn-token: %b\r\n" % token.reveal().encode()

    def lines(self, credential: Credential, _permit: Permit, _method: str) -> bytes:
        return credential.line
