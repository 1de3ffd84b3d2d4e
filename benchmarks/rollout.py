"""Time rollouts of the decode loop beside those of transformers, on the same model and lengths.

    python benchmarks/rollout.py --json rollout.json

Lengths of responses are fixed in advance and forced on every engine: the decode loop in the waves
that it makes of all prompts, `generate` in waves of WAVE, and transformers' continuous batching.
The best of several rounds counts, in which the engines take turns. Exit code 1: a goal is missed.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.decoding import Decoder, Responses
from rlhf_trainer.generation.sampling import Sampling

PROMPTS = 256
MEAN, LONGEST, SIGMA = 84, 256, 1.0
UNIFORM = 128
WAVE = 64
WAVES = (32, 128, 256)
"""Other waves of `generate`."""
SLOTS = (64, 256)
"""Rows that continuous batching holds; the faster of both counts."""
PAGE = 256
BATCH_TOKENS = 2048
SILENCE_SECONDS = 300
STOP, PAD = 0, 1

GOALS = {
    "speedup_heavy_tailed": 3.0,
    "speedup_uniform": 0.95,
    "useful_row_share": 0.9,
    "speedup_vs_continuous_batching": 2.0,
}

MODEL = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 688,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "eos_token_id": None,
    "bos_token_id": None,
}


def heavy_tailed(count: int, seed: int = 1) -> list[int]:
    """Lengths of a lognormal distribution whose mean is MEAN once none is above LONGEST."""
    drawn = np.random.default_rng(seed).lognormal(0.0, SIGMA, count)
    low, high = 0.0, float(LONGEST)
    # The mean grows with the scale.
    for _ in range(60):
        scale = (low + high) / 2
        cut = np.clip(np.round(scale * drawn), 1, LONGEST)
        low, high = (scale, high) if cut.mean() < MEAN else (low, scale)
    return [int(length) for length in cut]


def prompts(count: int, seed: int = 2) -> list[list[int]]:
    """Prompts of 4 to 32 tokens."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(4, 33, count)
    return [draw.integers(2, MODEL["vocab_size"], size).tolist() for size in sizes]


class Forced(RowSeeds):
    """Numbers that draw the stop token, the first of the vocabulary, at a given length."""

    def uniforms(self, count: int, device: torch.device) -> Tensor:
        """0 at the last token of a row, and 1/2 before and after."""
        ends = torch.tensor(list(self.rows), device=device).unsqueeze(1)
        steps = torch.arange(1, count + 1, device=device)
        return torch.where(steps == ends, 0.0, 0.5).double()


def decode(model: Any, given: Sequence[list[int]], lengths: Sequence[int]) -> Responses:
    """Our own decode loop."""
    sampling = Sampling(
        max_response_length=max(lengths),
        temperature=1.0,
        stop_ids=(STOP,),
        pad_id=PAD,
        wave=WAVE,
        room=lambda tokens: 10**9 // tokens,
    )
    # A row's number is its length here.
    found = Decoder(model, sampling, model.device).respond(given, Forced(0, lengths))
    assert found.lengths.tolist() == list(lengths)
    return found


class _Ends(StoppingCriteria):
    def __init__(self, prompt: int, lengths: Tensor) -> None:
        self._columns = prompt + lengths

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return input_ids.shape[1] >= self._columns


def generate(model: Any, given: Sequence[list[int]], lengths: Sequence[int], wave: int) -> None:
    """`generate`, in waves in the order of the prompts."""
    for start in range(0, len(given), wave):
        batch = pad_left(given[start : start + wave], PAD)
        ends = torch.tensor(list(lengths[start : start + wave]), device=model.device)
        model.generate(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=True,
                top_k=0,
                max_new_tokens=int(ends.max()),
                pad_token_id=PAD,
            ),
            stopping_criteria=StoppingCriteriaList([_Ends(batch.input_ids.shape[1], ends)]),
        )


def continuous(model: Any, given: Sequence[list[int]], lengths: Sequence[int], slots: int) -> None:
    """transformers' continuous batching, each request with a limit of its own."""
    pages = -(-(max(map(len, given)) + LONGEST) // PAGE)
    managed = model.continuous_batching_context_manager(
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=-1
        ),
        # Left to itself it takes most of the machine's memory.
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=slots * pages, max_batch_tokens=BATCH_TOKENS,
            max_requests_per_batch=slots,
        ),
        block=True,
    )  # fmt: skip
    with managed as manager:
        for at, (prompt, length) in enumerate(zip(given, lengths, strict=True)):
            manager.add_request(prompt, request_id=str(at), max_new_tokens=length)
        found: dict[str, int] = {}
        while len(found) < len(given):
            result = manager.get_result(timeout=SILENCE_SECONDS)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching: {result and result.error}")
            found[result.request_id] = len(result.generated_tokens)
    assert [found[str(at)] for at in range(len(given))] == list(lengths)


@dataclass(frozen=True)
class Measured:
    """Seconds of the best round by engine, for lengths with a heavy tail and for equal ones, and
    the row-steps that the decode loop computed."""

    heavy_tailed: Mapping[str, float]
    uniform: Mapping[str, float]
    tokens: int
    row_steps: int


OURS, THEIRS = "decode loop", f"generate, waves of {WAVE}"
CONTINUOUS = [f"continuous batching, {slots} slots" for slots in SLOTS]


def figures(measured: Measured) -> dict[str, float]:
    """What the goals are about."""
    heavy, uniform = measured.heavy_tailed, measured.uniform
    return {
        "speedup_heavy_tailed": heavy[THEIRS] / heavy[OURS],
        "speedup_uniform": uniform[THEIRS] / uniform[OURS],
        "useful_row_share": measured.tokens / measured.row_steps,
        "speedup_vs_continuous_batching": min(heavy[name] for name in CONTINUOUS) / heavy[OURS],
    }


def missed(found: Mapping[str, float]) -> list[str]:
    """Names of the goals that are not reached; NaN reaches none."""
    return [name for name, goal in GOALS.items() if not found[name] >= goal]


def best(engines: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each engine's best round; the engines take turns."""
    seconds = dict.fromkeys(engines, math.inf)
    for _ in range(rounds):
        for name, run in engines.items():
            begun = time.perf_counter()
            run()
            took = time.perf_counter() - begun
            seconds[name] = min(seconds[name], took)
            sys.stderr.write(f"{name}: {took:.2f} s\n")
    return seconds


def measure(rounds: int, device: str) -> Measured:
    """Run all engines."""
    torch.manual_seed(1)
    config = LlamaConfig(**MODEL)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(device)
    # Continuous batching changes the attention of its model.
    paged = copy.deepcopy(model)
    given, lengths, equal = prompts(PROMPTS), heavy_tailed(PROMPTS), [UNIFORM] * PROMPTS
    # What a first call makes is no part of a rollout.
    decode(model, given[:8], [2] * 8)
    generate(model, given[:8], [2] * 8, 8)
    row_steps = decode(model, given, lengths).row_steps
    heavy_tailed_engines: dict[str, Callable[[], object]] = {
        OURS: lambda: decode(model, given, lengths),
        THEIRS: lambda: generate(model, given, lengths, WAVE),
    }
    for name, slots in zip(CONTINUOUS, SLOTS, strict=True):
        heavy_tailed_engines[name] = lambda slots=slots: continuous(paged, given, lengths, slots)
    for wave in WAVES:
        heavy_tailed_engines[f"generate, waves of {wave}"] = lambda wave=wave: generate(
            model, given, lengths, wave
        )
    uniform = {
        OURS: lambda: decode(model, given, equal),
        THEIRS: lambda: generate(model, given, equal, WAVE),
    }
    return Measured(
        best(heavy_tailed_engines, rounds), best(uniform, rounds), sum(lengths), row_steps
    )


def table(measured: Measured) -> str:
    """A line an engine."""
    lines = ["| engine | heavy tail | equal lengths |", "| --- | --- | --- |"]
    for name, seconds in measured.heavy_tailed.items():
        equal = f"{measured.uniform[name]:.2f} s" if name in measured.uniform else ""
        lines.append(f"| {name} | {seconds:.2f} s | {equal} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all engines and write the figures; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(arguments)
    measured = measure(given.rounds, given.device)
    found = figures(measured)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(table(measured))
    for name, value in found.items():
        sys.stdout.write(f"{name}: {value:.2f} (goal {GOALS[name]:g})\n")
    return int(bool(missed(found)))


if __name__ == "__main__":
    sys.exit(main())
