"""Read the one object that a command is given the key of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.cli.etcd.options import open_source, reading
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.etcd.source import Item


def read_item(name: str, choice: EtcdChoice) -> Item:
    """Return one stored object.

    Args:
        name: Its key in etcd; relative to the prefix if it does not begin with a slash.
        choice: Where to read.

    Raises:
        HsmKmsError: There is no such object, or it cannot be read.
    """
    if not name.startswith("/"):
        name = choice.prefix + name
    with reading(choice), open_source(choice) as source:
        found = source.get(name.encode("utf-8", "surrogateescape"))
        if found is None:
            raise HsmKmsError(
                f"{printable(name)} does not exist in {source.name}",
                hint=f"a key is {choice.prefix}RESOURCE/NAMESPACE/NAME, and "
                f"{choice.prefix}GROUP/RESOURCE/NAMESPACE/NAME of a custom resource",
            )
        return found
