"""Opening a connection to a name: resolved once, judged, dialled at an address that was judged.

So neither a hostile resolver nor a rebinding name can lead a call elsewhere than `core.addresses`
allows. TLS then verifies the name. The environment's proxy settings have no say.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.proxy.core.addresses import Network, refusal


async def dial(
    factory: Callable[[], Any],
    host: str,
    port: int,
    *,
    allowed: tuple[Network, ...],
    context: ssl.SSLContext | None = None,
) -> Any:
    """A connected protocol made by ``factory``; ``host`` is a name, or an address without brackets.

    ``allowed`` are networks that the name may lead to besides public ones. Raises `TargetError`.
    The caller sets the time limit.
    """
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(codes.TARGET_UNREACHABLE, "the name does not resolve") from error
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    # Every address must be fit: an answer that mixes public and private ones is an attack.
    for address in addresses:
        reason = refusal(address, allowed)
        if reason:
            raise TargetError(codes.TARGET_ADDRESS_DENIED, f"{address}: {reason}")
    failure: OSError | None = None
    for address in addresses:
        try:
            _, protocol = await loop.create_connection(
                factory,
                address,
                port,
                ssl=context,
                server_hostname=host if context else None,
            )
        except ssl.SSLError as error:
            raise TargetError(codes.TARGET_TLS, type(error).__name__) from error
        except OSError as error:
            failure = error
        else:
            return protocol
    raise TargetError(codes.TARGET_UNREACHABLE, "no address accepts connections") from failure
