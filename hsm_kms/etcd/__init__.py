"""What kube-apiserver stored in etcd, read and counted without any key.

Reads in this order: `source` says what a source of stored objects is, `live`,
`json_file` and `snapshot` are the three there are; `values` takes one value apart;
`tally` counts. Nothing here ever writes to etcd. `rpc` is generated.
"""
