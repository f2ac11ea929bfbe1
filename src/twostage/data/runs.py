"""COCO's compressed run lengths in plain Python: to judge a mask before compiled code walks along it.

The text holds each count in groups of five bits plus 48, lowest first, bit 0x20 for "more follows", bit 0x10 of the
last group for the sign; from the fourth count on it is the difference to the count two before (cocoapi, maskApi.c).
"""

from collections.abc import Sequence

_BITS = 35  # seven groups: what 32-bit counts and their differences need


def decompress(text: str) -> list[int]:
    """The counts in a compressed text. Raises ValueError where it is not one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"counts hold the character {character!r}")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            if shift >= _BITS:
                raise ValueError(f"counts hold a number of more than {_BITS} bits")
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("counts end inside a number")
    return counts


def compress(counts: Sequence[int]) -> bytes:
    """The compressed text of counts."""
    out = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            code = value & 0x1F
            value >>= 5
            more = value != (-1 if code & 0x10 else 0)
            out.append((code | 0x20 if more else code) + 48)
    return bytes(out)
