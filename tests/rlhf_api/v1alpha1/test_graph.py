"""The order of stages, as a table, as properties, and against the CEL that an API server runs."""

from itertools import product
from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.names import StageName
from rlhf_api.v1alpha1.graph import MODEL_FIELDS, graph_rules, stage_inputs, stage_order
from rlhf_api.v1alpha1.stages import Stages

DATASET = {"uri": "file://rows.jsonl"}
FIELDS = [(stage, field) for stage in StageName for field in MODEL_FIELDS[stage]]


def make_stages(**reads: str) -> dict[str, Any]:
    """Stages by name, each with the stages it reads: `ppo="sft reward -"`, "-" being a URI."""
    document: dict[str, Any] = {}
    for name, read in reads.items():
        document[name] = {"dataset": DATASET}
        sources = (read.split() + ["-"] * 3)[: len(MODEL_FIELDS[StageName(name)])]
        for field, source in zip(MODEL_FIELDS[StageName(name)], sources, strict=True):
            document[name][field] = {"uri": "hf://o/m"} if source == "-" else {"fromStage": source}
    return document


@pytest.mark.parametrize(
    ("reads", "order"),
    [
        ({"sft": "-"}, "sft"),
        ({"ppo": "- -"}, "ppo"),
        ({"sft": "-", "reward": "-"}, "sft reward"),
        ({"sft": "-", "reward": "-", "ppo": "- -"}, "sft reward ppo"),
        ({"sft": "-", "reward": "sft", "ppo": "sft reward"}, "sft reward ppo"),
        ({"sft": "-", "reward": "-", "ppo": "sft reward reward"}, "sft reward ppo"),
        ({"sft": "reward", "reward": "-"}, "reward sft"),
        ({"sft": "ppo", "reward": "-", "ppo": "- reward"}, "reward ppo sft"),
        ({"sft": "-", "reward": "ppo", "ppo": "sft -"}, "sft ppo reward"),
        ({"reward": "-", "ppo": "- reward -"}, "reward ppo"),
    ],
)
def test_order(reads: dict[str, str], order: str) -> None:
    stages = Stages.model_validate(make_stages(**reads))
    assert stage_order(stages) == tuple(StageName(name) for name in order.split())


def test_inputs_by_field() -> None:
    stages = Stages.model_validate(make_stages(sft="-", reward="sft", ppo="sft reward sft"))
    assert stage_inputs(stages) == {
        "sft": {},
        "reward": {"model": "sft"},
        "ppo": {"model": "sft", "rewardModel": "reward", "criticModel": "sft"},
    }


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ({"sft": "sft"}, "stages.sft.model.fromStage: stage sft reads itself; give its model"),
        (
            {"sft": "reward", "reward": "sft"},
            "stages.sft.model.fromStage: stages read each other: sft reads reward reads sft; give",
        ),
        (
            {"sft": "-", "reward": "ppo", "ppo": "sft reward"},
            "stages.ppo.rewardModel.fromStage: stages read each other: ppo reads reward reads ppo;",
        ),
        (
            {"sft": "ppo", "reward": "sft", "ppo": "- reward"},
            "stages.sft.model.fromStage: .* sft reads ppo reads reward reads sft;",
        ),
        ({"reward": "sft"}, r"stages.reward.model.fromStage: stage reward reads stage sft, which"),
        ({"ppo": "- - sft"}, r"stages.ppo.criticModel.fromStage: stage ppo reads stage sft, which"),
    ],
)
def test_refusals_name_the_stages(reads: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        stage_order(Stages.model_validate(make_stages(**reads)))


@given(
    st.dictionaries(
        st.sampled_from(list(StageName)),
        st.lists(st.sampled_from(["-", *StageName]), min_size=3, max_size=3).map(" ".join),
        min_size=1,
    )
)
def test_an_order_has_every_stage_once_after_all_it_reads(reads: dict[str, str]) -> None:
    stages = Stages.model_validate(make_stages(**reads))
    try:
        order = stage_order(stages)
    except ValueError:
        return
    assert sorted(order) == sorted(reads)
    for reader, inputs in stage_inputs(stages).items():
        for source in inputs.values():
            assert order.index(source) < order.index(reader)


def test_the_api_server_refuses_exactly_what_we_refuse() -> None:
    """Every choice of stages that are there and of what each field reads: 2,024 jobs."""
    rules = [cel.compile(rule.cel) for rule in graph_rules()]
    choices: list[list[str | None]] = [[None, "-", *StageName] for _ in FIELDS]
    refused = seen = 0
    for sources in product(*choices):
        by_field = dict(zip(FIELDS, sources, strict=True))
        document: dict[str, Any] = {}
        for name in StageName:
            own = {field: by_field[name, field] for field in MODEL_FIELDS[name]}
            if own["model"] is None:
                if any(own.values()):
                    break
                continue
            if name is StageName.PPO and own["rewardModel"] is None:
                break
            document[name] = {"dataset": DATASET} | {
                field: {"uri": "hf://o/m"} if source == "-" else {"fromStage": source}
                for field, source in own.items()
                if source is not None
            }
        else:
            if not document:
                continue
            seen += 1
            verdict = all(rule.execute({"self": {"stages": document}}) for rule in rules)
            try:
                stage_order(Stages.model_validate(document))
                ours = True
            except ValueError:
                ours = False
            assert verdict is ours, document
            refused += not ours
    assert seen == 5 * 5 * (1 + 4 * 4 * 5) - 1
    assert 0 < refused < seen
