"""How varied generated text is: the number that falls when a policy collapses to one phrase.

Called by the PPO evaluation with the tokens (or characters) of all its responses.
"""

from collections.abc import Hashable, Iterable, Sequence


def distinct_n(token_sequences: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams / all n-grams, over the whole set; 0 where there are none.

    An n-gram never spans two sequences. The number falls as the set grows, so that only sets of
    about one size compare. J. Li et al., "A Diversity-Promoting Objective Function for Neural
    Conversation Models", 2016.

    Raises ValueError when n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: it must be 1 or more")
    grams = [
        tuple(sequence[start : start + n])
        for sequence in token_sequences
        for start in range(len(sequence) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
