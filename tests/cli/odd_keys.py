"""Keys as other tools make them, and a count of what reaches the module."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.support import PIN, TOKEN_LABEL, softhsm_module

if TYPE_CHECKING:
    from tests.harness.support import SoftHsm

LABEL = "k8s-kek"
_SPIES = (
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
    "/usr/lib64/pkcs11-spy.so",
    "/usr/lib64/pkcs11/pkcs11-spy.so",
)

# A process of its own: the tests themselves never load a module.
_MAKER = """
import json, sys, pkcs11
module, token, pin, key = sys.argv[1:]
key = json.loads(key)
capabilities = pkcs11.MechanismFlag(0)
for name in key["usage"]:
    capabilities |= pkcs11.MechanismFlag[name]
template = {pkcs11.Attribute[name]: value for name, value in key["template"].items()}
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as s:
    for cka_id in key["ids"]:
        s.generate_key(
            pkcs11.KeyType.AES, key["bits"], id=bytes.fromhex(cka_id), store=True,
            label=key["label"], capabilities=capabilities, template=template,
        )
"""


def make_key(
    hsm: SoftHsm,
    cka_id: bytes = b"odd",
    *,
    bits: int = 256,
    usage: tuple[str, ...] = ("ENCRYPT", "DECRYPT"),
    label: str = LABEL,
    **template: Any,
) -> None:
    """Generate an AES key with exactly these attributes."""
    make_keys(hsm, [cka_id], bits=bits, usage=usage, label=label, **template)


def make_keys(
    hsm: SoftHsm,
    cka_ids: list[bytes],
    *,
    bits: int = 256,
    usage: tuple[str, ...] = ("ENCRYPT", "DECRYPT"),
    label: str = LABEL,
    **template: Any,
) -> None:
    """Generate one AES key for each CKA_ID."""
    key = {
        "ids": [each.hex() for each in cka_ids],
        "bits": bits,
        "usage": usage,
        "label": label,
        "template": {"SENSITIVE": True, "EXTRACTABLE": False, **template},
    }
    hsm.run(
        *(sys.executable, "-c", _MAKER, softhsm_module()),
        *(TOKEN_LABEL, PIN, json.dumps(key)),
    )


def spy() -> str:
    """Path of OpenSC's pkcs11-spy."""
    for path in _SPIES:
        if Path(path).exists():
            return path
    raise FileNotFoundError("pkcs11-spy is not installed: run `make test`")


class Spy:
    """What to configure so that each call into SoftHSM leaves a line in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.module = spy()
        self.env = {"PKCS11SPY": softhsm_module(), "PKCS11SPY_OUTPUT": str(file)}

    def count(self, function: str) -> int:
        """How often this function was called, by all processes together."""
        if not self._file.exists():
            return 0
        text = self._file.read_text(errors="replace")
        return len(re.findall(rf"^\d+: {function}$", text, re.MULTILINE))


def command_lines(pid: int) -> str:
    """Arguments and environment of a process, as others on the node see them."""
    parts = []
    for name in ("cmdline", "environ"):
        try:
            parts.append(Path(f"/proc/{pid}/{name}").read_bytes())
        except OSError:  # gone meanwhile
            continue
    return b"\0".join(parts).decode(errors="replace")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def in_namespace(prefix: list[str], script: str, *arguments: str) -> list[str]:
    """A command that runs a shell script in a mount namespace, then the arguments."""
    return [*prefix, "sh", "-c", f'{script} && exec "$@"', "sh", *arguments]


def namespace_prefix() -> list[str] | None:
    """The command that makes a mount namespace, or None where none can be made."""
    prefix = ["unshare", "--mount"]
    if os.geteuid() != 0:
        prefix.append("--map-root-user")
    probe = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return None
    return prefix
