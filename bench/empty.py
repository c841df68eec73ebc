"""The yardstick: a grpc.aio server that answers v1 Encrypt with constant bytes.

python bench/empty.py SOCKET RESPONSE_BYTES
"""

from __future__ import annotations

import asyncio
import sys

import grpc.aio

from hsm_kms.api.rpc import kms_v1beta1_pb2


async def main() -> None:
    """Serve until killed."""
    socket, size = sys.argv[1], int(sys.argv[2])
    response = kms_v1beta1_pb2.EncryptResponse(cipher=b"x" * size)

    async def encrypt(_request: object, _context: object) -> object:
        return response

    method = grpc.unary_unary_rpc_method_handler(
        encrypt,
        request_deserializer=kms_v1beta1_pb2.EncryptRequest.FromString,
        response_serializer=kms_v1beta1_pb2.EncryptResponse.SerializeToString,
    )
    name = "v1beta1.KeyManagementService"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"Encrypt": method})]
    )
    server.add_registered_method_handlers(name, {"Encrypt": method})
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
