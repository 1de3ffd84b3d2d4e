"""No field below a stage's own is without a test that sees what it does, each named here."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from rlhf_api.v1alpha1 import PPOStage, RewardStage, SFTStage

TESTS = Path(__file__).parents[1]
POD = {"resources", "node_selector", "tolerations", "env"}
"""What the operator makes of these: tests/rlhf_operator/test_manifests.py."""

_SIZES = "models/test_load.py::test_scratch_models_have_the_sizes_asked_for"
_SHAPES = "data/parse/test_formats.py::test_preference_shapes"
_ENDPOINT = "ppo/rewards/test_endpoint.py"
_FUNCTION = "ppo/rewards/test_function.py"
_REWARDS = "stages/test_ppo_rewards.py::test_rewards_are_told_one_by_one_and_summed"

NAMED: dict[str, dict[str, str]] = {
    "ModelSource": {
        "uri": "fields/test_training.py::test_weights_are_those_of_plain_torch",
        "from_stage": "run/test_artifact.py::test_a_model_from_a_stage_is_its_verified_artifact",
        "scratch": _SIZES,
        "pad_token": "models/test_tokenizers.py::test_pad_token_of_the_spec_wins",
        "chat_template": "models/test_source.py"
        "::test_a_chat_template_of_the_job_replaces_that_of_the_tokenizer",
        "use_chat_template": "models/test_templates.py"
        "::test_a_base_model_may_do_without_its_template",
        "end_of_turn": "models/test_templates.py::test_the_end_of_a_turn_can_be_chosen",
    },
    "ScratchModel": {
        **dict.fromkeys(
            ("layers", "hidden_size", "heads", "intermediate_size", "max_positions"), _SIZES
        ),
        "tie_embeddings": _SIZES,
        "key_value_heads": "models/test_load.py"
        "::test_scratch_models_group_queries_where_the_architecture_can",
        "tokenizer": "models/test_source.py::test_a_scratch_base_is_sized_by_its_tokenizer",
    },
    "Dataset": {
        "uri": "fields/test_training.py::test_weights_are_those_of_plain_torch",
        "subset": "data/read/test_hub.py::test_a_downloaded_repository_is_read_offline",
        "split": "data/read/test_rows.py::test_a_folder_is_read_by_its_split",
        "columns": _SHAPES,
        "max_rows": "data/read/test_rows.py"
        "::test_max_rows_are_the_first_ones_and_the_rest_is_not_read",
        "over_long": "data/tokenize/test_tokenized.py::test_over_long_rows_are_dropped_and_counted",
        "allow_loss": "data/test_loading.py::test_more_than_half_is_lost_only_with_consent",
        "title_prefix": "data/parse/test_formats.py"
        "::TestPassages::test_the_title_stands_before_the_text_on_wish",
        "pairs_per_query": "data/parse/test_formats.py"
        "::TestPassages::test_pairs_are_distinct_and_at_most_all",
    },
    "Columns": {
        **dict.fromkeys(("prompt", "chosen", "rejected", "margin"), _SHAPES),
        **dict.fromkeys(("positive_passages", "negative_passages"), _SHAPES),
        **dict.fromkeys(
            ("response", "messages"), "data/parse/test_formats.py::test_supervised_shapes"
        ),
    },
    "CheckpointPolicy": {
        "every_steps": "run/test_loop.py::test_a_checkpoint_is_kept_every_so_many_steps",
        "every_seconds": "run/test_loop.py::test_a_step_that_ends_late_ends_with_a_checkpoint",
        "keep": "fields/test_told.py::test_as_many_checkpoints_stay_as_asked",
        "keep_finished": "stages/test_resume.py"
        "::test_checkpoints_of_all_attempts_go_with_the_stage_that_finished",
    },
    "Reward": {
        **dict.fromkeys(("name", "type", "weight", "function"), _REWARDS),
        "endpoint": "stages/test_ppo_rewards.py::test_an_endpoint_that_stays_away_ends_all_ranks",
    },
    "FunctionReward": {
        "name": f"{_FUNCTION}::test_it_gives_a_number_a_row",
        "uri": f"{_FUNCTION}::test_it_is_found_on_a_claim_and_among_installed_modules",
    },
    "EndpointReward": {
        "url": f"{_ENDPOINT}::test_rows_are_sent_in_batches",
        "batch_size": f"{_ENDPOINT}::test_rows_are_sent_in_batches",
        "timeout_seconds": f"{_ENDPOINT}::test_silence_is_unavailable",
        "retries": f"{_ENDPOINT}::test_a_service_that_stays_down_is_unavailable",
        "token_env": f"{_ENDPOINT}::test_a_token_is_sent",
    },
}
"""For each field the test, as a path below tests/rlhf_trainer."""


def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Models of the fields of a model, and of theirs."""
    for name, field in model.model_fields.items():
        if name not in POD:
            for inner in _models(field.annotation):
                yield inner
                yield from below(inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def fields() -> dict[str, set[str]]:
    """Names of the fields of each model below a stage."""
    stages = (SFTStage, RewardStage, PPOStage)
    return {each.__name__: set(each.model_fields) for stage in stages for each in below(stage)}


def missing(found: Mapping[str, set[str]]) -> set[str]:
    """Fields without a test, and tests of fields that are gone."""
    have = {f"{model}.{name}" for model, names in found.items() for name in names}
    listed = {f"{model}.{name}" for model, names in NAMED.items() for name in names}
    return have ^ listed


def test_every_nested_field_has_a_test() -> None:
    assert missing(fields()) == set()
    assert missing(fields() | {"New": {"field"}}) == {"New.field"}


@pytest.mark.parametrize("model", NAMED)
def test_the_named_tests_are_there(model: str) -> None:
    for name, test in NAMED[model].items():
        path, _, function = test.partition("::")
        text = (TESTS / path).read_text()
        assert function in _defined(ast.parse(text)), f"{model}.{name}: {test} is not there"


def _defined(tree: ast.Module) -> set[str]:
    """Functions of a module, and Class::method of its classes."""
    methods = {
        f"{each.name}::{inner.name}"
        for each in tree.body
        if isinstance(each, ast.ClassDef)
        for inner in each.body
        if isinstance(inner, ast.FunctionDef)
    }
    return methods | {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
