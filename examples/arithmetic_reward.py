"""The reward of the arithmetic example: whether an answer is right can be checked.

PPO imports it by `function: {name: arithmetic_reward:exact, uri: file://.}`; it needs no packages.
"""

import re
from collections.abc import Sequence

_SUM = re.compile(r"(\d+)\+(\d+)=")


def exact(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for each response that is the sum which its prompt asks for, else 0."""
    return [
        float(is_right(prompt, response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def is_right(prompt: str, response: str) -> bool:
    """Whether `response` is what `prompt` asks for, digit by digit.

    Raises:
        ValueError: the prompt is no sum, such as `17+25=`.
    """
    match = _SUM.fullmatch(prompt)
    if match is None:
        raise ValueError(f"prompt {prompt!r} is no sum; write it as 17+25=")
    return response == str(int(match[1]) + int(match[2]))
