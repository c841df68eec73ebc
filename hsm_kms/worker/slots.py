"""Have python-pkcs11 list all slots, even if one of them cannot describe itself.

python-pkcs11 calls C_GetSlotInfo for each slot, and gives up all of them if the call
fails for one, or if a description is not UTF-8. hsm-kms needs no description.
"""

from __future__ import annotations

import ctypes
from ctypes import c_ulong, c_void_p
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.ipc import ckr
from hsm_kms.worker.structs import FunctionList, SlotInfo

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOTYPE: Final = ctypes.CFUNCTYPE(c_ulong, c_ulong, c_void_p)


class TolerantSlots:
    """Copy a function list, with a C_GetSlotInfo that never fails.

    It must live as long as python-pkcs11 uses the copy.

    Args:
        functions: The function list of the module.
    """

    def __init__(self, functions: FunctionList) -> None:
        self._real: Callable[..., int] = _PROTOTYPE(functions.C_GetSlotInfo)
        self._ours = _PROTOTYPE(self._slot_info)
        self._list = FunctionList.from_buffer_copy(functions)
        self._list.C_GetSlotInfo = ctypes.cast(self._ours, c_void_p)

    def install(self, pointer: Any) -> None:
        """Put the copy in the place of the list that `pointer` points to."""
        pointer.contents = self._list

    def _slot_info(self, slot: int, address: int) -> int:
        info = SlotInfo.from_address(address)
        if self._real(slot, address) != ckr.CKR_OK or not _is_text(info):
            ctypes.memset(address, 0, ctypes.sizeof(SlotInfo))
        return ckr.CKR_OK


def _is_text(info: SlotInfo) -> bool:
    try:
        bytes(info.slotDescription).decode()
        bytes(info.manufacturerID).decode()
    except UnicodeDecodeError:
        return False
    return True
