"""Puts the services on one grpc.aio server; opens no port and starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from hsm_kms.api.call import Observe, nobody
from hsm_kms.api.v1 import SERVICE as V1_SERVICE
from hsm_kms.api.v1 import KmsV1
from hsm_kms.api.v2 import SERVICE as V2_SERVICE
from hsm_kms.api.v2 import KmsV2

if TYPE_CHECKING:
    from hsm_kms.api.ports import HealthSource, Wrapper
    from hsm_kms.config.schema import Apis

# Above the 4 MiB of an ordinary client, so that a field of that size gets our
# own refusal and not one of the transport.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024

# From 1,000 requests waiting to be accepted, grpc would cancel some at random: those
# of patient clients too, while others ask and give up.
MAX_PENDING_REQUESTS: Final = 1 << 16


def build_server(
    apis: Apis,
    *,
    v2: Wrapper,
    v1: Wrapper,
    health: HealthSource,
    observe: Observe = nobody,
) -> grpc.aio.Server:
    """Return a server with the services that are switched on.

    It has no bound on calls at once: a refusal there would reach a client before
    the pool of sessions had its say.

    Args:
        apis: Which services to add, and what v2's Status calls itself.
        v2: What seals and opens for v2.
        v1: What seals and opens for v1.
        health: What Status is made of.
        observe: Told of each request's method, code, seconds and path.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
        ]
    )
    services = {}
    if apis.v2.enabled:
        services[V2_SERVICE] = KmsV2(v2, health, apis.v2.version, observe).handlers()
    if apis.v1.enabled:
        services[V1_SERVICE] = KmsV1(v1, observe).handlers()
    for name, handlers in services.items():
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, handlers)]
        )
        # Spares the look-up by name at every call, a tenth of an empty one's time.
        server.add_registered_method_handlers(name, handlers)
    return server
