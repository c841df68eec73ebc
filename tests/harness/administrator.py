"""Change the keys on a token as its administrator does: in another process.

The tests themselves never load a module. The process is a fork of one that has imported
pkcs11, because imports are most of what a new process costs.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import NoSuchToken

from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pkcs11 import Session

    from hsm_kms.ipc.values import KeyRef
    from tests.harness.softhsm import SoftHsm

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["pkcs11"])
_NO_TOKEN = 3  # exit code of the process


class Generate(NamedTuple):
    """Generate a key with exactly these attributes.

    Args:
        ref: Its label and CKA_ID.
        bits: Its size.
        usage: What it may do, as names of `pkcs11.MechanismFlag`.
        key_type: Name of its `pkcs11.KeyType`.
    """

    ref: KeyRef
    bits: int = 256
    usage: Sequence[str] = ("ENCRYPT", "DECRYPT")
    template: Mapping[str, Any] = {}
    key_type: str = "AES"

    def run(self, session: Session) -> None:
        """Do it."""
        capabilities = MechanismFlag(0)
        for name in self.usage:
            capabilities |= MechanismFlag[name]
        template = {"SENSITIVE": True, "EXTRACTABLE": False, **self.template}
        session.generate_key(
            KeyType[self.key_type],
            self.bits,
            id=self.ref.cka_id,
            label=self.ref.label,
            store=True,
            capabilities=capabilities,
            template={Attribute[name]: each for name, each in template.items()},
        )


class Import(NamedTuple):
    """Put an AES key of known material on the token.

    Args:
        ref: Its label and CKA_ID.
        value: The key.
    """

    ref: KeyRef
    value: bytes

    def run(self, session: Session) -> None:
        """Do it."""
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.LABEL: self.ref.label,
                Attribute.ID: self.ref.cka_id,
                Attribute.VALUE: self.value,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.ENCRYPT: True,
                Attribute.DECRYPT: True,
            }
        )


class Relabel(NamedTuple):
    """Give every key of these names another label.

    Args:
        ref: Label and CKA_ID.
        label: The new label.
    """

    ref: KeyRef
    label: str

    def run(self, session: Session) -> None:
        """Do it."""
        for key in _named(session, self.ref):
            key[Attribute.LABEL] = self.label


class Destroy(NamedTuple):
    """Destroy every key of these names.

    Args:
        ref: Label and CKA_ID.
    """

    ref: KeyRef

    def run(self, session: Session) -> None:
        """Do it."""
        for key in _named(session, self.ref):
            key.destroy()


Step = Generate | Import | Relabel | Destroy


def change(hsm: SoftHsm, *steps: Step) -> None:
    """Take some steps, in one session.

    Args:
        hsm: The token.
        steps: The steps.
    """

    def ended() -> bool:
        process = _forks.Process(target=_run, args=(hsm.env, steps))
        process.start()
        process.join()
        assert process.exitcode in {0, _NO_TOKEN}, "see the traceback on stderr"
        return process.exitcode == 0

    wait_for(ended)


def _run(env: Mapping[str, str], steps: Sequence[Step]) -> None:
    os.environ.update(env)
    try:
        token = pkcs11.lib(softhsm_module()).get_token(token_label=TOKEN_LABEL)
    except NoSuchToken:
        # While another process logs in, SoftHSM writes the file of the token.
        sys.exit(_NO_TOKEN)
    with token.open(rw=True, user_pin=PIN) as session:
        for step in steps:
            step.run(session)


def _named(session: Session, ref: KeyRef) -> list[Any]:
    names = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.LABEL: ref.label,
        Attribute.ID: ref.cka_id,
    }
    return list(session.get_objects(names))
