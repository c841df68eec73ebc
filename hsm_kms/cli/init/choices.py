"""Hold what the operator chose for a node, and refuse what does not fit together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from hsm_kms.config.load import parse
from hsm_kms.errors import ConfigError
from hsm_kms.token.pin_file import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator

Cluster = Literal["kubeadm", "rke2", "k3s", "none"]
Form = Literal["static-pod", "systemd"]

FORMS: Final[dict[Cluster, Form]] = {
    "kubeadm": "static-pod",
    "rke2": "static-pod",
    "k3s": "systemd",  # many releases start pods only when their API server is ready
    "none": "systemd",
}
"""The form that is proposed for each kind of cluster."""

CONFIG_DIRECTORY: Final = Path("/etc/hsm-kms")  # the pod mounts it
CREDENTIAL: Final = CREDENTIALS / "hsm-kms.service" / "pin"
_RUN: Final = Path("/run")
_LINE: Final = re.compile(r" \(line \d+\)$")
# What YAML, unit files, tmpfiles.d and mount options take without quotation.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._/+@-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Hold what was chosen.

    Args:
        cluster: How the cluster was made; "none" for an API server without such a tool.
        form: How hsm-kms runs on the node.
        module: The PKCS#11 module on the node.
        token_label: Label of the token.
        pin_file: Where the PIN will be on the node.
        socket: The KMS socket.
        scope: Name of the cluster, or "".
        shared: True if all nodes use this token, or tokens that replicate keys.
    """

    cluster: Cluster
    form: Form
    module: str
    token_label: str
    pin_file: str
    socket: str
    scope: str
    shared: bool

    @property
    def is_softhsm(self) -> bool:
        """Return True if tokens are files that the module keeps in a directory."""
        return "softhsm" in Path(self.module).name

    @property
    def is_credential(self) -> bool:
        """Return True if systemd loads the PIN."""
        return Path(self.pin_file).is_relative_to(CREDENTIALS)

    @property
    def socket_directory(self) -> str:
        """Return the directory of the KMS socket."""
        return str(Path(self.socket).parent)

    def require_valid(self, config: str) -> None:
        """Refuse values that the configuration or the other files cannot have.

        Args:
            config: The configuration that has these values as they were given.

        Raises:
            ConfigError: Some are refused; the error lists all, in the words in which
                the configuration file is refused.
        """
        faults = list(self._faults())
        try:
            parse(config)
        except ConfigError as error:
            # Without the line in a file that nobody sees.
            told = [_LINE.sub("", fault) for fault in error.faults]
            faults = [*told, *faults]
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> Iterator[str]:
        for option in ("module", "pin_file", "socket"):
            if not _PLAIN.fullmatch(getattr(self, option)):
                yield (
                    f"--{option.replace('_', '-')}: must consist of letters, digits "
                    "and ._/+@-, or the files must be written by hand"
                )
        yield from self._pod_faults() if self.form == "static-pod" else ()
        yield from self._unit_faults() if self.form == "systemd" else ()

    def _pod_faults(self) -> Iterator[str]:
        if not Path(self.pin_file).is_relative_to(CONFIG_DIRECTORY):
            yield (
                f"--pin-file: must be in {CONFIG_DIRECTORY}, because the pod mounts "
                "that directory"
            )

    def _unit_faults(self) -> Iterator[str]:
        if Path(self.socket_directory).parent != _RUN:
            yield (
                "--socket: must be /run/DIRECTORY/NAME, so that systemd can make the "
                "directory"
            )
        if self.is_credential and self.pin_file != str(CREDENTIAL):
            yield f"--pin-file: the credential of the service is {CREDENTIAL}"
