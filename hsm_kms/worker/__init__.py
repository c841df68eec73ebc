"""The process that holds the PKCS#11 module: no gRPC, no event loop, no policy."""
