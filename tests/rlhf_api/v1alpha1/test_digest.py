"""What a digest covers: every field that determines the result, and nothing else."""

import json
from typing import Any

import pytest
from digest_fields import (
    CONSENTS,
    COSMETICS,
    DETERMINING,
    DIGESTS,
    ENDPOINT,
    FUNCTION,
    NEEDED,
    NEEDS,
    NESTED,
    PLACE,
    REQUIRED,
    REWARDS,
    SCRATCH,
    WORK,
    Table,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel
from pydantic_core import to_jsonable_python

from rlhf_api.contract import Contract
from rlhf_api.names import CONTRACT_VERSION, StageName
from rlhf_api.v1alpha1 import (
    PATIENCE_FIELDS,
    Columns,
    Dataset,
    EndpointReward,
    FunctionReward,
    LoRA,
    ModelSource,
    PPOStage,
    RewardStage,
    ScratchModel,
    SFTStage,
    StageConfig,
)

GOLDEN = "sha256:3bdd418e0f3af42a2b3e5007ec1923f4950cf0730b56c28922e8c9cdc5bc9df8"
STAGES: dict[StageName, type[Contract]] = {
    StageName.SFT: SFTStage,
    StageName.REWARD: RewardStage,
    StageName.PPO: PPOStage,
}


def document(stage: StageName, spec: dict[str, Any], **config: Any) -> dict[str, Any]:
    base = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
    if stage is StageName.PPO:
        base["rewardModel"] = {"uri": "hf://org/reward"}
    return {
        "job": {"name": "reviews", "uid": "0b5c1c4e-8f57"},
        "stage": stage.value,
        "attempt": 1,
        "storage": "/runs",
        stage.value: base | spec,
    } | config


def digest(stage: StageName, spec: dict[str, Any], **config: Any) -> str:
    return StageConfig.model_validate(document(stage, spec, **config)).digest()


def aliases(model: type[Contract]) -> set[str]:
    return {field.alias or "" for field in model.model_fields.values()}


RESOLVED: dict[StageName, set[str]] = {
    StageName.SFT: set(),
    StageName.REWARD: set(),
    StageName.PPO: {"preset"},
}
"""What the writer puts into other fields before there is a digest."""


def defaults(table: Table) -> dict[str, Any]:
    return {name: default for name, (default, _) in table.items() if default is not REQUIRED}


def scratch_model(sizes: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"uri": "scratch://llama", "scratch": SCRATCH | sizes}}


def test_every_field_has_its_kind() -> None:
    tables: list[tuple[type[Contract], set[str]]] = [
        (STAGES[stage], {*DETERMINING[stage], *COSMETICS[stage], *RESOLVED[stage]})
        for stage in StageName
    ]
    tables += [(model, {*table, *CONSENTS.get(model, ())}) for model, table in NESTED.items()]
    written = {"contractVersion", "configDigest", "stage", *StageName}
    for model, names in [*tables, (StageConfig, {*PLACE, *WORK, *written})]:
        assert aliases(model) == names, model


def test_defaults_are_those_of_this_contract_version() -> None:
    tables = [(STAGES[stage], DETERMINING[stage]) for stage in StageName]
    for model, table in [*tables, *NESTED.items()]:
        fields = {field.alias: field for field in model.model_fields.values()}
        for name, (default, _) in table.items():
            field = fields[name]
            assert field.is_required() == (default is REQUIRED), name
            if default is not REQUIRED:
                found = to_jsonable_python(field.get_default(), exclude_none=True)
                assert found == default, f"{model}.{name}: raise CONTRACT_VERSION with it"


ROWS = [(stage, name) for stage, table in DETERMINING.items() for name in table]


@pytest.mark.parametrize(("stage", "name"), ROWS)
def test_what_determines_the_result_changes_the_digest(stage: StageName, name: str) -> None:
    needed = NEEDS.get(name, {})
    assert digest(stage, needed | {name: DETERMINING[stage][name][1]}) != digest(stage, needed)


@pytest.mark.parametrize("name", NESTED[Dataset])
@pytest.mark.parametrize("stage", StageName)
def test_what_rows_are_read_and_how_changes_the_digest(stage: StageName, name: str) -> None:
    rows = {"uri": "file://rows.jsonl", name: NESTED[Dataset][name][1]}
    assert digest(stage, {"dataset": rows}) != digest(stage, {})


@pytest.mark.parametrize("dataset", ["dataset", "evalDataset", "ptxDataset"])
def test_what_a_person_agrees_to_changes_no_digest(dataset: str) -> None:
    given, agreed = ({"uri": "file://rows.jsonl", "allowLoss": said} for said in (False, True))
    assert digest(StageName.PPO, {dataset: given}) == digest(StageName.PPO, {dataset: agreed})


@pytest.mark.parametrize("name", Columns.model_fields)
def test_the_columns_change_the_digest(name: str) -> None:
    rows = {"uri": "file://rows.jsonl", "columns": {to_camel(name): "x"}}
    assert digest(StageName.SFT, {"dataset": rows}) != digest(StageName.SFT, {})


@pytest.mark.parametrize("name", NESTED[ScratchModel])
def test_the_sizes_of_a_model_change_the_digest(name: str) -> None:
    changed = scratch_model({name: NESTED[ScratchModel][name][1]})
    assert digest(StageName.SFT, changed) != digest(StageName.SFT, scratch_model({}))


@pytest.mark.parametrize("name", NESTED[LoRA])
def test_adapters_change_the_digest(name: str) -> None:
    plain: dict[str, Any] = {"rank": 4, "alpha": 8}
    changed = plain | {name: NESTED[LoRA][name][1]}
    assert digest(StageName.SFT, {"lora": changed}) != digest(StageName.SFT, {"lora": plain})


REWARD_FIELDS = [
    ("function", FUNCTION, {"name": "x", "type": "Function"}, FunctionReward),
    ("endpoint", ENDPOINT, {"name": "x", "type": "Endpoint"}, EndpointReward),
]


@pytest.mark.parametrize(("kind", "base", "reward", "model"), REWARD_FIELDS)
def test_how_rewards_are_computed_changes_the_digest(
    kind: str, base: dict[str, Any], reward: dict[str, Any], model: type[Contract]
) -> None:
    def of(**changes: Any) -> str:
        given = {"rewards": [reward | {kind: base} | changes], "rewardModel": None}
        return digest(StageName.PPO, given)

    others = {name: of(**{kind: base | {name: to}}) for name, (_, to) in REWARDS[model].items()}
    # How patiently a service is asked changes nothing of what it answers.
    patience = {to_camel(name) for name in PATIENCE_FIELDS} if kind == "endpoint" else set()
    assert {name for name, found in others.items() if found == of()} == patience
    changed = [found for name, found in others.items() if name not in patience]
    changed += [of(name="other"), of(weight=0.5)]
    assert len({of(), *changed}) == len(changed) + 1


@pytest.mark.parametrize("name", ["padToken", "chatTemplate", "useChatTemplate", "endOfTurn"])
def test_how_a_model_is_fed_changes_the_digest(name: str) -> None:
    changed = {"model": {"uri": "hf://org/base", name: NESTED[ModelSource][name][1]}}
    assert digest(StageName.SFT, changed) != digest(StageName.SFT, {})


@pytest.mark.parametrize("name", WORK)
def test_whose_work_it_is_and_on_how_many_ranks_changes_the_digest(name: str) -> None:
    stage = StageName.REWARD
    assert digest(stage, {}, **{name: WORK[name][1]}) != digest(stage, {})


def test_an_artifact_is_what_it_holds() -> None:
    def of(uri: str, held: str) -> str:
        return digest(StageName.PPO, {}, artifacts={"sft": {"uri": uri, "digest": held}})

    assert of("attempt-1", DIGESTS[0]) == of("attempt-2", DIGESTS[0])
    assert of("attempt-1", DIGESTS[0]) != of("attempt-1", DIGESTS[1])


def test_ranks_count_wherever_they_run() -> None:
    ways = [(1, 8), (2, 4), (8, 1)]
    found = {digest(StageName.SFT, {}, nodes=n, processesPerNode=p) for n, p in ways}
    assert len(found) == 1


@pytest.mark.parametrize("name", PLACE)
def test_where_the_work_is_done_changes_nothing(name: str) -> None:
    assert digest(StageName.SFT, {}, **{name: PLACE[name][1]}) == digest(StageName.SFT, {})


@given(st.data())
def test_what_is_cosmetic_changes_nothing(data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(StageName))
    chosen = data.draw(st.sets(st.sampled_from(sorted(COSMETICS[stage])), min_size=1))
    assert digest(stage, {name: COSMETICS[stage][name] for name in chosen}) == digest(stage, {})


@given(st.data())
def test_a_default_that_is_written_out_changes_nothing(data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(StageName))
    changed = data.draw(st.sampled_from(sorted(DETERMINING[stage])))
    said = NEEDS.get(changed, {}) | {changed: DETERMINING[stage][changed][1]}
    known = defaults(DETERMINING[stage])
    written = data.draw(st.sets(st.sampled_from(sorted(known.keys() - said.keys() - NEEDED))))
    rows = {"uri": "file://rows.jsonl"} | {
        name: defaults(NESTED[Dataset])[name]
        for name in data.draw(st.sets(st.sampled_from(sorted(defaults(NESTED[Dataset])))))
    }
    explicit = {"dataset": rows} | {name: known[name] for name in written} | said
    place = {"nodes": 1, "claims": {}, "masterPort": 0, "artifacts": {}}
    assert digest(stage, explicit, **place) == digest(stage, said)


@pytest.mark.parametrize("name", defaults(NESTED[ScratchModel]))
def test_a_size_by_default_or_said_is_the_same(name: str) -> None:
    said = scratch_model({name: NESTED[ScratchModel][name][0]})
    assert digest(StageName.SFT, said) == digest(StageName.SFT, scratch_model({}))


def test_defaults_are_left_out_of_the_file_and_come_back() -> None:
    for stage in StageName:
        config = StageConfig.model_validate(document(stage, {})).with_digest()
        text = config.to_json()
        assert json.loads(text) == document(
            stage, {}, contractVersion=CONTRACT_VERSION, configDigest=config.digest()
        )
        read = StageConfig.from_json(text)
        assert (read, read.to_json()) == (config, text)
        spec = defaults(DETERMINING[stage]) | read.spec.to_resolved_document()
        assert spec["checkpoint"] == {"everySteps": 100, "keep": 2, "keepFinished": False}


def test_the_same_work_keeps_its_digest_in_every_release() -> None:
    """Where this fails, running jobs lose their checkpoints: only CONTRACT_VERSION may do that."""
    assert digest(StageName.SFT, {"seed": 7}) == GOLDEN
