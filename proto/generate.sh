#!/bin/sh
# Generates hsm_kms/api/rpc and hsm_kms/etcd/rpc from the .proto files beside
# this script.
#
#   proto/generate.sh [DIR]    write below DIR, by default the project's root
#
# The left side of -I is the path the generated modules import each other by, so
# that all of them can be loaded in one process. PYTHON names the interpreter that
# has grpcio-tools (dependency group "proto").
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root}

# generate FOLDER PACKAGE NAME...: messages, and stubs where there is a service
generate() {
  folder=$1 package=$2
  shift 2
  mkdir -p "$out/$package"
  for name; do
    "${PYTHON:-python3}" -m grpc_tools.protoc -I "$package=$folder" \
      --python_out="$out" --pyi_out="$out" "$package/$name.proto"
    if grep -q '^service ' "$folder/$name.proto"; then
      "${PYTHON:-python3}" -m grpc_tools.protoc -I "$package=$folder" \
        --grpc_python_out="$out" "$package/$name.proto"
    fi
  done
}

generate "$root/proto" hsm_kms/api/rpc kms_v1beta1 kms_v2
generate "$root/proto/etcd" hsm_kms/etcd/rpc envelope kv object rpc
