"""Where the lines of a log begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

MAX_LINE_BYTES = 64 * 1024
"""Longer lines are given in pieces of this length, cut between characters where they are UTF-8."""
_LONGEST_CHARACTER = 4


def split(block: bytes, *, complete: bool) -> Iterator[tuple[int, int, int]]:
    """The lines in `block`: where each begins, where it ends without its newline, where the next one begins.

    What may be the beginning of a longer piece is left for later.

    Args:
        block: Bytes from the beginning of a line, or of a piece of one, on.
        complete: Nothing follows: the rest without a newline is a line too.
    """
    begin = 0
    while begin < len(block):
        newline = block.find(b"\n", begin, begin + MAX_LINE_BYTES + 1)
        if newline >= 0:
            yield begin, newline, newline + 1
            begin = newline + 1
        elif len(block) - begin > MAX_LINE_BYTES:
            end = _between_characters(block, begin + MAX_LINE_BYTES)
            yield begin, end, end
            begin = end
        else:
            if complete:
                yield begin, len(block), len(block)
            return


def _between_characters(block: bytes, end: int) -> int:
    """The last boundary of characters at or before `end`; `end` itself where the bytes are no UTF-8."""
    for cut in range(end, end - _LONGEST_CHARACTER, -1):
        if block[cut] & 0xC0 != 0x80:  # not the inside of a character
            return cut
    return end


def start_of_last(read: Callable[[int, int], bytes], start: int, size: int, lines: int) -> int:
    """Where the last `lines` complete lines begin; a rest without newline comes on top of them.

    Looks back no further than that many of the longest lines.

    Args:
        read: Gives the bytes between two offsets.
        start: Where the log begins.
        size: Where it ends.
        lines: How many; with 0 the beginning of the rest.
    """
    limit = max(start, size - (lines + 1) * MAX_LINE_BYTES)
    end, wanted = size, lines + 1  # that many newlines back begins the first of them
    while end > limit:
        begin = max(limit, end - MAX_LINE_BYTES)
        block = read(begin, end)
        found = block.count(b"\n")
        if found >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return begin + at + 1
        wanted -= found
        end = begin
    return limit
