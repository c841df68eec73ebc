"""Hold the PKCS#11 module in a process without gRPC, event loop or key policy."""
