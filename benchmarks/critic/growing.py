"""The reward of `critic_stability.py`: it grows with every good letter of a response."""

from collections.abc import Sequence

LETTERS = "abcdefghijklmnopqrstuvwxyz"
GOOD = frozenset("aeiou")


def good_letters(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """How many letters of each response are vowels."""
    del prompts
    return [float(sum(letter in GOOD for letter in response)) for response in responses]
