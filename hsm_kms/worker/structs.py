"""Define the C structures of PKCS#11 that pass between ctypes and a module."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_ubyte, c_ulong, c_void_p

from hsm_kms.ipc.functions import FUNCTIONS


class Version(ctypes.Structure):
    """CK_VERSION."""

    _fields_ = (("major", c_ubyte), ("minor", c_ubyte))


class FunctionList(ctypes.Structure):
    """CK_FUNCTION_LIST up to the last function that hsm-kms uses."""

    _fields_ = (("version", Version), *((name, c_void_p) for name in FUNCTIONS))


class InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS."""

    _fields_ = (
        ("CreateMutex", c_void_p),
        ("DestroyMutex", c_void_p),
        ("LockMutex", c_void_p),
        ("UnlockMutex", c_void_p),
        ("flags", c_ulong),
        ("pReserved", c_void_p),
    )


class Info(ctypes.Structure):
    """CK_INFO."""

    _fields_ = (
        ("cryptokiVersion", Version),
        ("manufacturerID", c_char * 32),
        ("flags", c_ulong),
        ("libraryDescription", c_char * 32),
        ("libraryVersion", Version),
    )


class Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (
        ("mechanism", c_ulong),
        ("pParameter", c_void_p),
        ("ulParameterLen", c_ulong),
    )


class CkAttribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = (("type", c_ulong), ("pValue", c_void_p), ("ulValueLen", c_ulong))


class GcmParams(ctypes.Structure):
    """CK_GCM_PARAMS of the PKCS#11 2.40 headers, with ulIvBits."""

    _fields_ = (
        ("pIv", c_void_p),
        ("ulIvLen", c_ulong),
        ("ulIvBits", c_ulong),
        ("pAAD", c_void_p),
        ("ulAADLen", c_ulong),
        ("ulTagBits", c_ulong),
    )


class TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO."""

    _fields_ = (
        ("label", c_char * 32),
        ("manufacturerID", c_char * 32),
        ("model", c_char * 16),
        ("serialNumber", c_char * 16),
        ("flags", c_ulong),
        ("ulMaxSessionCount", c_ulong),
        ("ulSessionCount", c_ulong),
        ("ulMaxRwSessionCount", c_ulong),
        ("ulRwSessionCount", c_ulong),
        ("ulMaxPinLen", c_ulong),
        ("ulMinPinLen", c_ulong),
        ("ulTotalPublicMemory", c_ulong),
        ("ulFreePublicMemory", c_ulong),
        ("ulTotalPrivateMemory", c_ulong),
        ("ulFreePrivateMemory", c_ulong),
        ("hardwareVersion", Version),
        ("firmwareVersion", Version),
        ("utcTime", c_char * 16),
    )


class SlotInfo(ctypes.Structure):
    """CK_SLOT_INFO."""

    _fields_ = (
        ("slotDescription", c_ubyte * 64),
        ("manufacturerID", c_ubyte * 32),
        ("flags", c_ulong),
        ("hardwareVersion", Version),
        ("firmwareVersion", Version),
    )


class SessionInfo(ctypes.Structure):
    """CK_SESSION_INFO."""

    _fields_ = (
        ("slotID", c_ulong),
        ("state", c_ulong),
        ("flags", c_ulong),
        ("ulDeviceError", c_ulong),
    )
