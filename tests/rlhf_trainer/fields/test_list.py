"""No field of a stage is without a test that sees what it does.

A field has a case in `training_cases`, or a test that is named here; where it determines nothing
that a stage computes, that test sees what it does instead.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import worlds

from rlhf_api.v1alpha1 import PPOStage, RewardStage, SFTStage, StageSpec

cases: Any = worlds.load(Path(__file__).with_name("training_cases.py"))

TESTS = Path(__file__).parents[2]
STAGES: dict[str, type[StageSpec]] = {"sft": SFTStage, "reward": RewardStage, "ppo": PPOStage}

POD = {
    **dict.fromkeys(
        ("resources", "node_selector", "tolerations", "env", "priority_class_name"),
        "rlhf_operator/test_manifests.py::test_a_stage_overrides_the_template",
    ),
    **dict.fromkeys(
        ("nodes", "processes_per_node"),
        "rlhf_operator/planning/test_configs.py::test_pods_are_not_the_trainers_business",
    ),
}
"""What the operator makes of fields that say where a stage runs; the trainer reads none of them."""

MEMORY = {
    "zero_stage": "models/test_engine.py::test_ranks_and_micro_batches_do_not_change_training",
    "micro_batch_size": "stages/test_micro_batches.py"
    "::test_loss_and_gradient_are_those_of_the_whole_batch",
    "gradient_checkpointing": "stages/test_gradient_checkpointing.py::test_a_stage_learns_the_same",
    "checkpoint": "run/test_loop.py::test_a_checkpoint_is_kept_every_so_many_steps",
}
"""Results must not depend on them: their tests compare what is computed with each."""

NAMED: dict[str, dict[str, str]] = {
    "sft": {
        "eval_dataset": "stages/test_sft_layouts.py"
        "::test_loss_and_evaluation_are_those_of_transformers",
        "packing": "stages/test_sft.py::test_packing_changes_neither_loss_nor_gradient",
    },
    "reward": {
        "eval_dataset": "stages/test_reward.py::test_statistics_are_those_of_all_scores",
    },
    "ppo": {
        "eval_dataset": "stages/test_ppo.py::test_before_and_after",
        "preset": "rlhf_api/v1alpha1/test_presets.py::test_a_preset_is_its_values_written_out",
        "rewards": "stages/test_ppo_rewards.py::test_rewards_are_told_one_by_one_and_summed",
        "truncated_answers": "ppo/test_reward_scaling.py"
        "::test_what_was_cut_off_may_count_the_penalty_alone",
        "stop_tokens": "stages/test_ppo_updates.py::test_a_stop_token_ends_a_response",
        "value_normalization": "stages/test_scaling.py"
        "::test_value_units_follow_the_returns_and_the_loss_is_in_them",
        "ema_decay": "stages/test_actor_steps.py"
        "::test_what_is_left_is_the_average_and_the_checkpoint_has_the_last_weights",
        "rollout_micro_batch_size": "ppo/test_experience.py"
        "::test_micro_batches_do_not_change_an_experience",
        "max_response_length": "fields/test_told.py::test_answers_are_as_long_as_they_may_be",
        "samples_every_steps": "fields/test_told.py::test_samples_are_written_as_often_as_asked",
    },
}
"""Tests of what is no weight after training, or of what has more than one way to be seen."""

ALL = POD | MEMORY
ALL |= {
    "device": "rlhf_trainer/process/test_device.py::test_the_table",
    "precision": "fields/test_told.py::test_weights_have_the_precision_that_was_asked_for",
    "attention_implementation": "fields/test_told.py::test_attention_is_computed_as_asked_for",
    "eval_every_steps": "fields/test_told.py::test_evaluations_come_as_often_as_asked",
}


def named(stage: str) -> dict[str, str]:
    """The tests of a stage's fields that are named here, as paths below `tests`."""
    return {
        name: test if test.startswith("rlhf_") else f"rlhf_trainer/{test}"
        for name, test in (ALL | NAMED[stage]).items()
    }


def without_test(fields: Mapping[str, Any], stage: str) -> set[str]:
    """Fields that are in no test."""
    return set(fields) - cases.trained(stage) - set(named(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_has_a_test(stage: str) -> None:
    fields = STAGES[stage].model_fields
    assert without_test(fields, stage) == set()
    assert without_test({**fields, "new": None}, stage) == {"new"}


@pytest.mark.parametrize("stage", STAGES)
def test_no_test_is_of_a_field_that_is_gone(stage: str) -> None:
    listed = cases.trained(stage) | set(named(stage))
    assert listed - set(STAGES[stage].model_fields) == set()
    assert not cases.trained(stage) & set(named(stage)), "one place for each field"


@pytest.mark.parametrize("stage", STAGES)
def test_the_named_tests_are_there(stage: str) -> None:
    for name, test in named(stage).items():
        path, _, function = test.partition("::")
        tree = ast.parse((TESTS / path).read_text())
        defined = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        assert function in defined, f"{stage}.{name}: {test} is not there"


@pytest.mark.parametrize(("stage", "case"), cases.cases())
def test_a_case_changes_its_field_alone(stage: str, case: str) -> None:
    field = case.partition("[")[0]
    beside = cases.BESIDE.get(case, {})
    change = cases.change(stage, case)
    assert set(change) - {field} == set(beside) - {field}
    assert all(change[name] == value for name, value in beside.items() if name != field)
