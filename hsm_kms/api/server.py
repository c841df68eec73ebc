"""Build the grpc.aio server of both services; open no port and start nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from hsm_kms.api.call import Observe, unobserved
from hsm_kms.api.v1 import SERVICE as V1_SERVICE
from hsm_kms.api.v1 import KmsV1
from hsm_kms.api.v2 import SERVICE as V2_SERVICE
from hsm_kms.api.v2 import KmsV2
from hsm_kms.audit.port import UNAUDITED

if TYPE_CHECKING:
    from hsm_kms.api.ports import HealthSource, Wrapper
    from hsm_kms.audit.port import Audit
    from hsm_kms.config.schema import Apis

# Above the 4 MiB of an ordinary client, so that `call` refuses a field of that size,
# and not the transport.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024

# With gRPC's default, 1,000 requests that wait to be accepted make gRPC cancel some at
# random, also those of clients that would have waited longer than the others.
MAX_PENDING_REQUESTS: Final = 1 << 16


def build_server(
    apis: Apis,
    *,
    v2: Wrapper,
    v1: Wrapper,
    health: HealthSource,
    observe: Observe = unobserved,
    audit: Audit = UNAUDITED,
) -> grpc.aio.Server:
    """Return a server with the enabled services.

    The server does not limit concurrent calls: it would refuse requests that the pool
    of sessions could still serve.

    Args:
        apis: Which services to add, and the version that v2's Status reports.
        v2: Encrypts and decrypts for v2.
        v1: Encrypts and decrypts for v1.
        health: Source of Status.
        observe: Called with each request's method, code, seconds, path and key_id.
        audit: Records each Encrypt and Decrypt.
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
        of_v2 = KmsV2(v2, health, apis.v2.version, observe, audit)
        services[V2_SERVICE] = of_v2.handlers()
    if apis.v1.enabled:
        services[V1_SERVICE] = KmsV1(v1, observe, audit).handlers()
    for name, handlers in services.items():
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, handlers)]
        )
        # Saves gRPC a look-up by name, a tenth of the time of an empty call.
        server.add_registered_method_handlers(name, handlers)
    return server
