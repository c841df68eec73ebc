#!/bin/sh
# Generates hsm_kms/api/rpc from the .proto files beside this script.
#
#   proto/generate.sh [DIR]    write below DIR, by default the project's root
#
# The left side of -I is the path the generated modules import each other by, so
# that both APIs can be loaded in one process. PYTHON names the interpreter that
# has grpcio-tools (dependency group "proto").
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root}
package=hsm_kms/api/rpc
mkdir -p "$out/$package"
exec "${PYTHON:-python3}" -m grpc_tools.protoc \
  -I "$package=$root/proto" \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  "$package/kms_v1beta1.proto" "$package/kms_v2.proto"
