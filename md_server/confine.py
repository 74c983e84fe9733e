"""Gives up what a server that reads what guests send has no use for: every capability, and getting any again.

The files that it reads belong to the user as whom it runs, and its sockets come from elsewhere. A core of it would
hold secrets: none is written. Nor is any file that is long: all that it writes is its log, of which no guest is to
make more.

To be called once, before there are threads.
"""

from __future__ import annotations

import ctypes
import os
import resource

from ecompute.guest.told import LOG_LIMIT_BYTES

_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 4, 24, 38  # prctl(2)
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522  # capset(2)

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def confine() -> None:
    """Give it all up.

    Raises:
        OSError: the kernel refused it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_LIMIT_BYTES, LOG_LIMIT_BYTES))
    _prctl(_SET_NO_NEW_PRIVS, 1)
    _prctl(_SET_DUMPABLE, 0)
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # not all are known, and who has none may not drop any
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    if _libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), ctypes.byref(sets)):
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
