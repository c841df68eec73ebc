"""Say which manifests a node needs, and what choices change in them.

The text of every file is that of manifests/, which the package contains. A choice
replaces the value that stands there, wherever it stands.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.init.choices import Choices

CONFIG: Final = "config.yaml"
_EXAMPLE: Final = "config.example.yaml"
SOCKET: Final = "/run/hsm-kms/kms.sock"
PIN_FILE: Final = "/etc/hsm-kms/pin"
TOKEN_LABEL: Final = "k8s"  # noqa: S105 - the label of the example
IN_POD: Final = "/opt/hsm-kms-module"  # where the pod mounts the module's directory

_POD_MANIFESTS: Final = {
    "kubeadm": "/etc/kubernetes/manifests",
    "rke2": "/var/lib/rancher/rke2/agent/pod-manifests",
    "k3s": "/var/lib/rancher/k3s/agent/pod-manifests",
    "none": "the kubelet's staticPodPath",
}
_ENCRYPTION: Final = {
    "kubeadm": "/etc/kubernetes/encryption/config.yaml",
    "rke2": "/var/lib/rancher/rke2/server/hsm-kms/config.yaml",
    "k3s": "/var/lib/rancher/k3s/server/hsm-kms/config.yaml",
    "none": "the file that --encryption-provider-config names",
}
_API_SERVER: Final = {
    "kubeadm": {
        "kubeadm/kube-apiserver.yaml": "lines for "
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
        "kubeadm/cluster-configuration.yaml": "lines for the ClusterConfiguration",
    },
    "rke2": {"rke2/config.yaml": "lines for /etc/rancher/rke2/config.yaml"},
    "k3s": {"k3s/config.yaml": "lines for /etc/rancher/k3s/config.yaml"},
    "none": {},
}


_PAGES: Final = {
    "kubeadm": "docs/install/kubeadm.md",
    "rke2": "docs/install/rke2-and-rancher.md",
    "k3s": "docs/install/k3s.md",
    "none": "docs/install/README.md",
}
_CREDENTIAL_SOURCE: Final = "/etc/hsm-kms/pin.cred"  # as in pin-credential.conf
_RKE2: Final = (
    "RKE2 encrypts Secrets already: add its provider aescbc to each "
    f"EncryptionConfiguration as {_PAGES['rke2']} shows, or no Secret can be read"
)


class File(NamedTuple):
    """Name a file that `init` writes.

    Attributes:
        name: Path below the directory of `init`.
        manifest: The file below manifests/ that has the text.
        purpose: Where the file belongs, in the order in which it is needed.
    """

    name: str
    manifest: str
    purpose: str


def needed(choices: Choices) -> Iterator[File]:
    """Yield the files that a node needs, in the order in which they are used."""
    if choices.form == "systemd":
        yield _same("systemd/sysusers.d/hsm-kms.conf", "/etc/sysusers.d/hsm-kms.conf")
    yield _same("tmpfiles.d/hsm-kms.conf", "/etc/tmpfiles.d/hsm-kms.conf")
    yield File(CONFIG, _EXAMPLE, "/etc/hsm-kms/config.yaml")
    if choices.is_softhsm:
        yield _same("softhsm2.conf", "/etc/hsm-kms/softhsm2.conf")
    if choices.form == "systemd":
        unit = "/etc/systemd/system/hsm-kms.service"
        if choices.is_credential:
            yield _same("systemd/pin-credential.conf", f"{unit}.d/pin-credential.conf")
        yield _same("systemd/hsm-kms.service", unit)
    else:
        where = _POD_MANIFESTS[choices.cluster]
        yield _same("static-pod.yaml", f"{where}/hsm-kms.yaml")
    config = _ENCRYPTION[choices.cluster]
    for step, name in enumerate(("v2-read", "v2", "v2-only"), 1):
        yield _same(f"encryption-config-{name}.yaml", f"{config}, step {step}")
        if step == 1:  # the flag names a file that is there
            for other, purpose in _API_SERVER[choices.cluster].items():
                yield _same(other, purpose)


def notes(choices: Choices) -> Iterator[str]:
    """Yield what else is to be done, and where the steps are."""
    if not choices.is_softhsm:
        yield "docs/compatibility.md has what config.yaml needs for your HSM"
    if choices.is_credential:
        yield f"Encrypt the PIN into {_CREDENTIAL_SOURCE} with systemd-creds"
    else:
        yield f"Write the PIN to {choices.pin_file}"
    if choices.cluster == "rke2":
        yield _RKE2
    pages = [_PAGES[choices.cluster]]
    if choices.form == "systemd":
        pages.insert(0, "docs/install/systemd.md")
    yield f"The steps are in {' and '.join(pages)}"


def text_of(file: File, choices: Choices) -> str:
    """Return the content of a file for these choices."""
    text = files("hsm_kms").joinpath("manifests", file.manifest).read_text("utf-8")
    changes = list(_changes(choices))
    # In one pass, so that no pattern sees what another has put in.
    one_of = "|".join(f"({pattern})" for pattern, _ in changes)
    return re.sub(
        one_of,
        lambda found: changes[(found.lastindex or 0) - 1][1],
        text,
        flags=re.MULTILINE,
    )


def config_as_given(choices: Choices) -> str:
    """Return a configuration that has every value as it was given.

    That of a static pod has the module where the pod mounts it.
    """
    file = File(CONFIG, _EXAMPLE, "")
    return text_of(file, replace(choices, form="systemd"))


def _same(name: str, purpose: str) -> File:
    return File(name, name, purpose)


def _changes(choices: Choices) -> Iterator[tuple[str, str]]:
    """Yield what choices replace in the manifests: a pattern, and the new text.

    No pattern has a group.
    """
    if choices.cluster == "rke2":
        comment = "".join(f"# {line}\n" for line in textwrap.wrap(f"{_RKE2}.", 86))
        yield r"^(?=apiVersion: apiserver\.config)", comment
    module = Path(os.path.realpath(choices.module))
    in_config = choices.module
    if choices.form == "static-pod":
        in_config = f"{IN_POD}/{module.name}"
        yield r"/usr/lib/x86_64-linux-gnu/softhsm(?=,)", str(module.parent)
    else:
        yield r" for the static pod beside this file\.", ""
    yield r"(?<=^  module: ).*", in_config
    yield r"(?<=^  token_label: ).*", _scalar(choices.token_label)
    yield r'(?<=^scope: )""', _scalar(choices.scope)
    yield r"(?<=^  shared: )true", json.dumps(choices.shared)
    if not choices.is_softhsm:
        yield from _without_token_files()
    if choices.is_credential:
        yield rf"^z {PIN_FILE} .*\n", ""
    yield rf"{PIN_FILE}(?![\w.])", choices.pin_file
    directory = choices.socket_directory
    # Whatever is no path, the configuration refuses; once is enough.
    if directory.startswith("/") and directory != str(Path(SOCKET).parent):
        admin = f"{directory}/admin.sock"
        yield r"(?<=hsm-kms-healthcheck, livez)(?=\])", f", {admin}"
        yield r"(?<=hsm-kms-healthcheck, readyz)(?=\])", f", {admin}"
        yield r"^keys:\n", f"http:\n  admin_socket: {admin}\nkeys:\n"
        yield r"(?<=^RuntimeDirectory=).*", Path(directory).name
    yield SOCKET, choices.socket
    yield r"/run/hsm-kms(?![\w./-])", directory


def _without_token_files() -> Iterator[tuple[str, str]]:
    """Yield what removes the directory of tokens that are files."""
    yield r"^  env:\n    SOFTHSM2_CONF: .*\n", ""
    yield r"^d /var/lib/hsm-kms-token .*\n", ""
    yield r"^ +- \{name: token, .*\n", ""
    yield r"^ +- name: token .*\n.*\n", ""
    yield r"^# .*\nReadWritePaths=-/var/lib/hsm-kms-token\n", ""


def _scalar(value: str) -> str:
    """Write text so that YAML reads it as this text."""
    plain = re.fullmatch(r"[\w.@/+-]+", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
