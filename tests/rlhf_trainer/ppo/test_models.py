"""PPO's models come one after the other."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
import worlds
from transformers import RecurrentGemmaConfig

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.models import activations, memory
from rlhf_trainer.models.heads import Logits
from rlhf_trainer.models.source import Base
from rlhf_trainer.ppo import models
from rlhf_trainer.ppo.models import Bases, Workload, load_models, wave_room
from rlhf_trainer.rl import CHUNK_NUMBERS

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "loading_cases.py"
cases: Any = worlds.load(PROGRAM)

ORDER = ["load_causal_model", "load_causal_model", "load_reward_base", "load_reward_model"]
WORKLOAD = Workload(longest=16, scored=4)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_model_is_placed_before_the_next_is_loaded(tmp_path: Path, zero_stage: int) -> None:
    told = cases.loaded(tiny.ranks(), tmp_path, zero_stage)
    assert [name for name, _, _ in told] == ORDER
    assert [placed for _, placed, _ in told] == [0, 1, 2, 3]


def test_no_other_model_is_whole_when_one_is_loaded_under_zero_3(tmp_path: Path) -> None:
    # The files that both ranks read.
    tiny.stage_config("ppo", tmp_path)
    for told in worlds.pair()(PROGRAM, "loaded", folder=tmp_path, zero_stage=3):
        assert told == [(name, placed, 0) for placed, name in enumerate(ORDER)]


@pytest.mark.parametrize(("longest_text", "counted"), [(0, 0), (8, 7), (60, 20)])
@pytest.mark.parametrize("logits", Logits)
def test_rows_of_ptx_have_logits_of_tokens_that_count_or_of_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    longest_text: int,
    counted: int,
    logits: Logits,
) -> None:
    monkeypatch.setattr(models, "fewest_logits", lambda *_: logits)
    config = tiny.stage_config("ppo", tmp_path, precision="BF16", micro_batch_size=15)
    assert config.ppo is not None
    bases = Bases.open(config.ppo, config, tiny.ranks())

    def needed(longest: int, *texts: int) -> int:
        workload = Workload(longest, 1, *texts)
        with caplog.at_level(logging.INFO, logger=memory.__name__):
            load_models(bases, config.ppo, config, tiny.ranks(), workload)
        return int(caplog.records[-1].__dict__["bytes_needed"])

    def learning(length: int, columns: int) -> int:
        return activations.allowance(
            bases.actor.config, activations.MicroBatch(4, length, columns), "BF16"
        )

    texts = learning(longest_text, longest_text if logits is Logits.ALL else counted)
    larger = max(learning(16, 9), texts) - learning(16, 9)
    assert needed(16, longest_text, counted) - needed(16) == larger
    assert (larger > 0) == (longest_text > 16)


@pytest.mark.parametrize("chunk", [CHUNK_NUMBERS, 3000])
@pytest.mark.parametrize(
    ("sampling", "truncated"), [({}, False), ({"top_k": 3}, True), ({"top_p": 0.9}, True)]
)
def test_a_rollout_takes_no_more_than_the_estimate_sets_aside(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sampling: dict[str, Any],
    truncated: bool,
    chunk: int,
) -> None:
    monkeypatch.setattr(activations, "CHUNK_NUMBERS", chunk)
    config = tiny.stage_config(
        "ppo", tmp_path, micro_batch_size=4, rollout_micro_batch_size=1, **sampling
    )
    assert config.ppo is not None
    bases = Bases.open(config.ppo, config, tiny.ranks())

    def needed() -> int:
        with caplog.at_level(logging.INFO, logger=memory.__name__):
            load_models(bases, config.ppo, config, tiny.ranks(), WORKLOAD)
        return int(caplog.records[-1].__dict__["bytes_needed"])

    with_work = needed()
    with patch.object(models, "_activations", lambda *given: (0, 0)):
        budget = with_work - needed()
    logits = load_models(bases, config.ppo, config, tiny.ranks(), WORKLOAD).logits
    room = wave_room(bases.actor, config.ppo, 1, WORKLOAD, logits)
    for tokens in (9, 16):
        expected = activations.rollout_rows(
            bases.actor.config, budget, "FP32", tokens, truncated=truncated
        )
        assert room(tokens) == expected
        assert expected > 4


@pytest.mark.parametrize("name", ["critic", "reward_model"])
def test_texts_of_ptx_need_positions_of_the_actor_alone(tmp_path: Path, name: str) -> None:
    config = tiny.stage_config("ppo", tmp_path)
    assert config.ppo is not None
    bases = Bases.open(config.ppo, config, tiny.ranks())

    def with_short(name: str) -> Bases:
        base = getattr(bases, name)
        short = type(base.config)(**base.config.to_dict() | {"max_position_embeddings": 20})
        named = replace(base, config=short, field=f"spec.stages.ppo.{name}")
        return replace(bases, **{name: named})

    load_models(with_short(name), config.ppo, config, tiny.ranks(), Workload(20, 4, 21))
    for short, longest, text in ((name, 21, 0), ("actor", 20, 21)):
        workload = Workload(longest, 4, text)
        with pytest.raises(
            ConfigError, match=f"^spec.stages.ppo.{short}: the model takes 20 .* 21;"
        ):
            load_models(with_short(short), config.ppo, config, tiny.ranks(), workload)


@pytest.mark.parametrize("name", ["actor", "critic", "reward_model"])
def test_a_model_that_reads_padding_is_refused_before_any_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a prompt of PPO has it before its tokens: afterwards a self-check would find it out."""
    config = tiny.stage_config("ppo", tmp_path)
    assert config.ppo is not None
    bases = Bases.open(config.ppo, config, tiny.ranks())
    recurrent = RecurrentGemmaConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=32)
    named = replace(getattr(bases, name), config=recurrent, field=f"spec.stages.ppo.{name}")
    if name != "actor":
        # Of this family there is no classifier to count the weights of.
        size = bases.actor.size(name, trained=False)
        monkeypatch.setattr(Base, "size", lambda *_, **__: size)
    with pytest.raises(InputError, match=f"^spec.stages.ppo.{name}: .* reads padding before a row"):
        load_models(replace(bases, **{name: named}), config.ppo, config, tiny.ranks(), WORKLOAD)
