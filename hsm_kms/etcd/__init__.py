"""Read, count and verify what kube-apiserver stored in etcd; never write to etcd.

Read the files in this order: `source` defines a source of stored objects; `live`,
`json_file` and `snapshot` are the three sources; `values` parses one value; `tally`
counts; `verify` has a token decrypt. `rpc` is generated.
"""
