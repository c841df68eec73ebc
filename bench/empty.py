"""Serve the yardstick: a grpc.aio server that answers v1 with constant bytes.

python -m bench.empty SOCKET BYTES_OF_ENCRYPT BYTES_OF_DECRYPT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio

from hsm_kms.api.rpc import kms_v1beta1_pb2


async def main() -> None:
    """Serve until killed."""
    socket, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
    sealed = kms_v1beta1_pb2.EncryptResponse(cipher=b"x" * sizes[0])
    opened = kms_v1beta1_pb2.DecryptResponse(plain=b"x" * sizes[1])

    async def encrypt(_request: object, _context: object) -> object:
        return sealed

    async def decrypt(_request: object, _context: object) -> object:
        return opened

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Encrypt": grpc.unary_unary_rpc_method_handler(
            encrypt,
            request_deserializer=kms_v1beta1_pb2.EncryptRequest.FromString,
            response_serializer=kms_v1beta1_pb2.EncryptResponse.SerializeToString,
        ),
        "Decrypt": grpc.unary_unary_rpc_method_handler(
            decrypt,
            request_deserializer=kms_v1beta1_pb2.DecryptRequest.FromString,
            response_serializer=kms_v1beta1_pb2.DecryptResponse.SerializeToString,
        ),
    }
    name = "v1beta1.KeyManagementService"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods)]
    )
    server.add_registered_method_handlers(name, methods)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
