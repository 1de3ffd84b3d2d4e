"""How many rows are decoded together: plain arithmetic on numbers of rows and tokens.

Called by the decode loop.
"""

from collections.abc import Callable, Sequence

_SIZES_AN_OCTAVE = 8


def bucket(rows: int) -> int:
    """The smallest allowed number of rows that holds `rows`.

    Eight sizes lie between a power of two and the next, all up to 16 are allowed: few shapes for a
    device, and few rows that are computed for nothing.
    """
    step = max(1, (1 << (rows.bit_length() - 1)) // _SIZES_AN_OCTAVE)
    return -(-rows // step) * step


def waves(
    prompt_lengths: Sequence[int], response: int, *, room: Callable[[int], int], at_least: int
) -> list[list[int]]:
    """Rows by length of prompt, as many together as there is room for, or `at_least`.

    Args:
        prompt_lengths: of all rows.
        response: tokens of the longest response.
        room: how many rows of so many tokens a wave has room for; the longest counts for all.
        at_least: rows of a wave, whatever they hold.
    """
    order = sorted(range(len(prompt_lengths)), key=lambda row: prompt_lengths[row])
    result: list[list[int]] = []
    for row in order:
        # Rows come by length: this one is the longest so far.
        width = prompt_lengths[row] + response
        if not result or len(result[-1]) >= max(at_least, room(width)):
            result.append([])
        result[-1].append(row)
    return result
