"""Whether the decode loop is used: by what it sampled, and by what a model keeps of its past."""

import functools
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import decoded
import pytest
import stage_runs
import tiny
import torch
import worlds
from torch import Tensor, nn

from rlhf_trainer.models.heads import Actor
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.ppo import collection, sampler_check
from rlhf_trainer.ppo.collection import Collector
from rlhf_trainer.ppo.first_ratio import FirstRatio
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.old_logprobs import may_serve_as_old
from rlhf_trainer.ppo.popart import ReturnScale
from rlhf_trainer.ppo.sampler_check import drift_of, with_exact_sampler
from rlhf_trainer.ppo.samplers import DecodingSampler, GenerateSampler
from rlhf_trainer.ppo.self_checks import check_rollout, short_sampling
from rlhf_trainer.ppo.state import State
from rlhf_trainer.rl import Moments, TokenStatistics

CASES: Any = worlds.load(Path(__file__).parents[1] / "programs_engine" / "self_check_cases.py")


def collector(folder: Path, model: Any, precision: str = "FP32", **changed: Any) -> Collector:
    """As the stage has it, as far as the check looks at it."""
    actor = Actor(model).eval()
    parts: Any = SimpleNamespace(actor=PlacedModel(actor, actor, zero_stage=0))
    nothing: Any = None
    return Collector(
        CASES.spec(folder, precision=precision, **changed),
        tiny.ALONE,
        nothing,
        parts,
        State(0.1, Moments(), ReturnScale(), Health()),
        nothing,
        CASES.SAMPLING,
        FirstRatio(),
    )


def replaced(model: Any, change: Callable[..., Any]) -> Any:
    """The model, whose forward pass is `change(plain, ...)`."""
    plain = model.forward

    @functools.wraps(plain)
    def forward(*given: Any, **named: Any) -> Any:
        return change(plain, *given, **named)

    model.forward = forward
    return model


def off_by_half_a_nat(plain: Any, *given: Any, **named: Any) -> Any:
    output = plain(*given, **named)
    if named.get("past_key_values") is not None:
        output.logits[..., 3:9] += 0.5
    return output


def without_cache(plain: Any, *given: Any, **named: Any) -> Any:
    return plain(*given, **named | {"past_key_values": None, "use_cache": False})


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_a_sound_model_is_decoded(
    tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    settings = {"FP32": tiny.FP32, "BF16": tiny.BF16}[precision]
    model = tiny.causal_model(words, "gpt2", settings)
    found = with_exact_sampler(collector(tmp_path, model, precision), CASES.PROMPTS)
    assert found.decodes
    assert found.state.sampled_logprobs == (precision == "FP32")
    assert isinstance(found.sampler(found.models.actor), DecodingSampler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            off_by_half_a_nat,
            r"self-check decoding: mean .* is 0\.\d+ nats a token, more than 0.0001 in FP32, on "
            r"this rank most \(\d\.\d+\) at token \d+ of the answer to a prompt of \d tokens",
            id="other numbers",
        ),
        pytest.param(
            without_cache,
            "LlamaForCausalLM cannot be decoded token by token: layer 0 keeps no keys and values",
            id="no cache",
        ),
    ],
)
def test_a_model_that_is_decoded_wrongly_is_left_to_generate(
    tmp_path: Path, change: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = replaced(tiny.causal_model(words, "llama"), change)
    found = with_exact_sampler(collector(tmp_path, model), CASES.PROMPTS)
    assert not found.decodes
    assert found.state.sampled_logprobs is False
    assert isinstance(found.sampler(found.models.actor), GenerateSampler)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "spec.stages.ppo.model: " in record.getMessage()
    assert "generate" in record.getMessage()
    assert re.search(said, record.getMessage()), record.getMessage()


def test_a_model_with_another_past_is_left_to_generate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = with_exact_sampler(collector(tmp_path, decoded.model_of("Mamba")), CASES.PROMPTS)
    assert not found.decodes
    assert "rows of what MambaForCausalLM keeps of its past" in caplog.text


class Told(nn.Module):
    """Says of each token that it was as likely as it is told."""

    def __init__(self, logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = logprobs

    def forward(self, *inputs: Any) -> Any:
        return TokenStatistics(self.logprobs)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        pytest.param(0.0, False, id="equal"),
        pytest.param(0.9e-4, False, id="within the bound"),
        pytest.param(1.1e-4, True, id="beyond it"),
        pytest.param(math.nan, True, id="not a number"),
    ],
)
def test_the_mean_over_tokens_is_judged(tmp_path: Path, change: float, refused: bool) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    subject = collector(tmp_path, tiny.causal_model(words))
    actor = subject.models.actor
    sampler = subject.sampler(actor, short_sampling(subject.sampling))
    rollout = check_rollout(sampler, CASES.PROMPTS, subject.spec, tiny.ALONE)
    told = torch.where(rollout.response_mask, rollout.sampled_logprobs, 99.0)
    # All of it at one token, the second of the third answer.
    told[2, 1] -= change * int(rollout.response_mask.sum())
    model: Any = Told(told)
    reason = drift_of(rollout, PlacedModel(model, model, 0), subject).refusal("FP32")
    assert (reason is not None) == refused
    if reason is not None:
        prompt = int(rollout.prompt_lengths[2])
        assert f"at token 2 of the answer to a prompt of {prompt} tokens" in reason


@pytest.mark.parametrize(
    ("changed", "drift", "serves"),
    [
        ({}, 0.9e-5, True),
        ({}, 1e-5, False),
        ({}, math.inf, False),
        ({"precision": "BF16"}, 0.0, False),
        ({"top_k": 3}, 0.0, False),
        ({"top_p": 0.99}, 0.0, False),
        ({"old_logprobs": "Recompute"}, 0.0, False),
    ],
)
def test_what_is_sampled_serves_as_old_where_it_is_the_same(
    tmp_path: Path, changed: dict[str, Any], drift: float, serves: bool
) -> None:
    assert may_serve_as_old(CASES.spec(tmp_path, **changed), drift) == serves


def test_bounds_are_those_that_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "ppo.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("| `decoding` | "))
    fp32, bf16 = (float(cell) for cell in re.findall(r"\| ([\d.e-]+) (?=\|)", line))
    assert {"FP32": fp32, "BF16": bf16} == sampler_check.DRIFT_BOUND


def test_a_stage_that_falls_back_samples_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoding = tiny.stage_config("ppo", tmp_path / "decoding", max_steps=2, samples_every_steps=1)
    stage_runs.run(decoding)
    assert not [record for record in caplog.records if "generate" in record.getMessage()]
    monkeypatch.setattr(sampler_check, "DRIFT_BOUND", {"FP32": -1.0})
    made = MagicMock(side_effect=GenerateSampler)
    monkeypatch.setattr(collection, "GenerateSampler", made)
    generating = tiny.stage_config(
        "ppo", tmp_path / "generating", max_steps=2, samples_every_steps=1
    )
    stage_runs.run(generating)
    assert made.called
    assert len([record for record in caplog.records if "generate" in record.getMessage()]) == 1
    found, expected = (
        [sample["response"] for sample in stage_runs.samples(config)]
        for config in (generating, decoding)
    )
    assert found == expected
    assert len(set(found)) > 4
