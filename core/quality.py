"""How far a reading can be trusted: OPC UA status codes, upper 16 bits, as int16.

The two top bits of an OPC UA status are its severity, so kept as a signed
16-bit number a status sorts itself: negative is bad, from 0x4000 up uncertain,
the rest good. The database stores the very same smallint.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

UNCERTAIN_FROM: Final = 0x4000


class Quality(StrEnum):
    GOOD = "good"
    UNCERTAIN = "uncertain"
    BAD = "bad"


def status(code: int) -> int:
    """The stored status of a 32-bit OPC UA status code."""
    upper = (code >> 16) & 0xFFFF
    return upper - 0x10000 if upper >= 0x8000 else upper


def status_code(stored: int) -> int:
    """The 32-bit OPC UA status code of a stored status."""
    return (stored & 0xFFFF) << 16


def quality_of(stored: int) -> Quality:
    if stored < 0:
        return Quality.BAD
    return Quality.UNCERTAIN if stored >= UNCERTAIN_FROM else Quality.GOOD


def is_good(statuses: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    return (statuses >= 0) & (statuses < UNCERTAIN_FROM)


def is_bad(statuses: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    return statuses < 0


# The codes ecmc itself gives (OPC UA Part 4, 7.39, and Part 8, 5.2).
GOOD: Final = status(0x00000000)
GOOD_LOCAL_OVERRIDE: Final = status(0x00960000)
UNCERTAIN: Final = status(0x40000000)
UNCERTAIN_LAST_USABLE_VALUE: Final = status(0x40900000)  # stale
UNCERTAIN_SUBSTITUTE_VALUE: Final = status(0x40910000)
UNCERTAIN_INITIAL_VALUE: Final = status(0x40920000)
UNCERTAIN_SENSOR_NOT_ACCURATE: Final = status(0x40930000)
UNCERTAIN_ENGINEERING_UNITS_EXCEEDED: Final = status(0x40940000)
UNCERTAIN_SUBNORMAL: Final = status(0x40950000)
BAD: Final = status(0x80000000)
BAD_COMMUNICATION_ERROR: Final = status(0x80050000)
BAD_DECODING_ERROR: Final = status(0x80070000)
BAD_TIMEOUT: Final = status(0x800A0000)
BAD_NO_COMMUNICATION: Final = status(0x80310000)
BAD_WAITING_FOR_INITIAL_DATA: Final = status(0x80320000)
BAD_OUT_OF_RANGE: Final = status(0x803C0000)
BAD_CONFIGURATION_ERROR: Final = status(0x80890000)
BAD_NOT_CONNECTED: Final = status(0x808A0000)
BAD_DEVICE_FAILURE: Final = status(0x808B0000)
BAD_SENSOR_FAILURE: Final = status(0x808C0000)
BAD_OUT_OF_SERVICE: Final = status(0x808D0000)
BAD_WITHDRAWN: Final = status(0x809B0000)  # BadNoData: somebody took the value back, on record

STATUS_OF_QUALITY: Final = {Quality.GOOD: GOOD, Quality.UNCERTAIN: UNCERTAIN, Quality.BAD: BAD}
