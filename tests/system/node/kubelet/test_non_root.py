"""An API server that is not root uses the plugin, by what manifests/ offer for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.manifests import MANIFESTS, for_a_group, uncommented, with_components
from tests.system.node.kubelet.operator import (
    CONFIG,
    NOBODY,
    TMPFILES,
    api_server,
    create,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries
    from tests.system.node.kubelet.node import Node
    from tests.system.node.kubelet.pod_view import PodView

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

GROUP = 10002


def test_an_api_server_that_is_not_root(
    make_node: Callable[..., Node],
    view: Callable[[Node], PodView],
    binaries: Binaries,
    kustomize: Callable[[str], str],
    new_folder: Callable[[], Path],
) -> None:
    """With group 10002 in pod, socket and directory, user 65534 encrypts."""
    config = uncommented(CONFIG, "(?:mode|group): .*")
    node = make_node(config, for_a_group(TMPFILES))
    pod = view(node)
    text = (MANIFESTS / "kustomization.yaml").read_text()
    node.place(kustomize(with_components(text, "non-root-apiserver")))
    pod.wait_ready(False)
    pod.exec("hsm-kms", "keys", "generate")
    pod.wait_ready()

    socket = (node.folder / "run" / "kms.sock").stat()
    assert (0o660, GROUP) == (socket.st_mode & 0o777, socket.st_gid)
    with api_server(node, binaries, new_folder(), root=False) as (api, etcd):
        assert NOBODY == api.uid()
        create(api, "nobody")
        assert stored(etcd)["nobody"].startswith(b"k8s:enc:kms:v2:hsm-kms:")
        api.restart()
        assert b"nobody" in api.kubectl("get", "secrets", "-o", "name")
