"""Structure of JPEG files (ITU-T T.81, annex B), found by following the segments.

Bytes inside of segments and behind the end marker can look like markers: thumbnails, or the video of a motion photo.
"""

import re
from dataclasses import dataclass

END = b"\xff\xd9"
# The markers that matter: not escaped bytes, restart markers or reserved ones.
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
SOS = 0xDA
# Segments that are looked at: those before the pixels, which `parts` counts, and tables between 64 scans.
MAX_SEGMENTS = 2000
# Start of frame. The others from 0xC0 on are tables.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Bits for the 64 coefficients of a block.
COEFFICIENTS = 2**64 - 1


@dataclass(frozen=True)
class JpegStructure:
    """The first image of a file."""

    scans: int
    # MAX_SEGMENTS + 1: there are too many, and the rest of the file is unknown.
    segments: int
    # Offset behind the end marker. None: it is missing.
    end: int | None
    # Whether there is a scan with the last bits of each coefficient of each component.
    has_all_scans: bool


def parse(data: bytes) -> JpegStructure:
    """Return the structure of a file. Raises no exception: that of an invalid file has no meaning."""
    scans, segments, at, end = 0, 0, 2, None
    # By component: the coefficients whose last bits no scan has had.
    missing: dict[int, int] = {}
    while end is None and segments <= MAX_SEGMENTS and (found := MARKER.search(data, at)):
        kind, at = found[1][0], found.end()
        segments += 1
        if kind == END[1]:
            end = at
            continue
        segment = data[at + 2 : at + int.from_bytes(data[at : at + 2])]
        at += max(2, int.from_bytes(data[at : at + 2]))
        if kind in FRAMES:
            missing |= dict.fromkeys(segment[6::3], COEFFICIENTS)
        elif kind == SOS:
            scans += 1
            _read_scan(segment, missing)
    return JpegStructure(scans, segments, end, has_all_scans=bool(missing) and not any(missing.values()))


def next_restart_marker(data: bytes) -> bytes:
    """Return the restart marker that would follow, if the file has such markers: they count from 0 to 7 and again."""
    found = RESTART.findall(data, data.rfind(bytes((0xFF, SOS))))
    return bytes((0xFF, 0xD0 + (found[-1][0] - 0xD0 + 1) % 8 if found else 0xD0))


def _read_scan(header: bytes, missing: dict[int, int]) -> None:
    count = header[0] if header else 0
    components, parameters = header[1 : 1 + 2 * count : 2], header[1 + 2 * count :]
    if len(parameters) != 3:
        return
    first, last, bits = parameters
    # Later scans refine the last bits.
    if bits & 0x0F:
        return
    done = (1 << last + 1) - (1 << first) if first <= last < 64 else 0
    for component in components:
        if component in missing:
            missing[component] &= ~done
