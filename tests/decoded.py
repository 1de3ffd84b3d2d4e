"""Models, prompts and samplings for tests of the decode loop, and what `generate` makes of them."""

import copy
from collections.abc import Sequence
from typing import Any

import tiny
import torch
import zoo
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.decoding import Decoder, Responses
from rlhf_trainer.generation.sampling import Sampling

CPU = torch.device("cpu")
STOPS = (1, 5, 9)
PAD = 0
PROMPTS = [[3 + (7 * row + 5 * at) % 19 for at in range(1 + (4 * row) % 9)] for row in range(24)]


EAGER = ("BLOOM", "Gemma 2", "GPT-J", "Mamba")
"""For which transformers has nothing else."""


def model_of(name: str, attention: str = "sdpa") -> Any:
    """A shaken model of an architecture of the zoo."""
    config = copy.deepcopy(zoo.ARCHITECTURES[name])
    # Tied, random embeddings answer with the last token again and again.
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        config,
        dtype=torch.float32,
        attn_implementation="eager" if name in EAGER else attention,
    )
    return tiny.shake(model).eval()


def sampling(**changed: Any) -> Sampling:
    settings: dict[str, Any] = {
        "max_response_length": 20,
        "temperature": 1.0,
        "stop_ids": STOPS,
        "pad_id": PAD,
        "wave": 5,
        "room": lambda tokens: 10**6 // tokens,
    }
    return Sampling(**settings | changed)


def decoded(model: Any, prompts: Sequence[Sequence[int]] = PROMPTS, **changed: Any) -> Responses:
    """What the decode loop answers."""
    decoder = Decoder(model, sampling(**changed), CPU)
    return decoder.respond(prompts, RowSeeds(5, range(len(prompts))))


def lists(responses: Responses) -> list[list[int]]:
    """The tokens of each response."""
    rows = zip(responses.tokens.tolist(), responses.lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]


def generated(model: Any, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[list[int]]:
    """What `generate` answers greedily."""
    batch = pad_left(prompts, PAD)
    sequences = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling().max_response_length,
            eos_token_id=list(STOPS),
            pad_token_id=PAD,
        ),
    )
    return [cut(row) for row in sequences[:, batch.input_ids.shape[1] :].tolist()]


def cut(tokens: list[int]) -> list[int]:
    """Up to the first stop token, and with it."""
    ends = [at + 1 for at, token in enumerate(tokens) if token in STOPS]
    return tokens[: ends[0]] if ends else tokens
