"""StageConfig is made with its digest, and with nothing that does not concern it."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Artifact, StageConfig, claim_of, uris
from rlhf_operator.planning.configs import Configs, Placement, stage_config

SFT = Artifact(uri="reviews-01234567/sft/attempt-1/artifact", digest="sha256:" + "1" * 64)
REWARD = Artifact(uri="reviews-01234567/reward/attempt-1/artifact", digest="sha256:" + "2" * 64)
ARTIFACTS = {StageName.REWARD: REWARD, StageName.SFT: SFT}
PLACEMENT = Placement(
    storage="/mnt/claims/runs",
    claims={"data": "/mnt/claims/data", "other": "/mnt/claims/other"},
    master_address="reviews-{stage}-{attempt}-0.reviews",
    master_port=29500,
    metrics_port=9400,
)
DATASET = {"uri": "pvc://data/rows.jsonl"}


def test_what_is_made_survives_the_file_with_its_digest(trial: Callable[..., Any]) -> None:
    config = stage_config(trial().job, StageName.SFT, 1, {}, PLACEMENT)
    document = config.to_resolved_document()
    assert document["sft"]["learningRate"] == 1e-5
    assert document["sft"]["epochs"] == 1
    assert document["masterAddress"] == "reviews-sft-1-0.reviews"
    assert document["masterPort"] == 29500
    read = StageConfig.from_json(config.to_json())
    assert read.to_json() == config.to_json()
    assert read == config
    assert read.config_digest == config.digest()


def test_the_length_is_not_settled_twice(trial: Callable[..., Any]) -> None:
    stages = {"sft": {"model": {"uri": "hf://a/b"}, "dataset": DATASET, "maxSteps": 7}}
    config = stage_config(trial(stages=stages).job, StageName.SFT, 1, {}, PLACEMENT)
    assert (config.spec.epochs, config.spec.max_steps) == (None, 7)


def test_artifacts_of_what_is_read_alone(trial: Callable[..., Any]) -> None:
    job = trial().job
    assert stage_config(job, StageName.REWARD, 1, ARTIFACTS, PLACEMENT).artifacts == {
        StageName.SFT: SFT
    }
    assert stage_config(job, StageName.PPO, 1, ARTIFACTS, PLACEMENT).artifacts == ARTIFACTS


@pytest.mark.field("StageSpec.nodes")
@pytest.mark.field("StageSpec.processes_per_node")
def test_pods_are_not_the_trainers_business(trial: Callable[..., Any]) -> None:
    sft = {"model": {"uri": "hf://a/b"}, "dataset": DATASET, "nodes": 2, "processesPerNode": 4}
    plain = trial(stages={"sft": sft}).job
    dressed = trial(
        stages={"sft": sft | {"env": [{"name": "X", "value": "1"}], "priorityClassName": "low"}}
    ).job
    configs = [stage_config(job, StageName.SFT, 1, {}, PLACEMENT) for job in (plain, dressed)]
    assert configs[0].to_json() == configs[1].to_json()
    assert (configs[0].nodes, configs[0].processes_per_node, configs[0].spec.nodes) == (2, 4, None)
    assert configs[0].claims == {"data": "/mnt/claims/data"}


def test_the_digest_does_not_know_the_attempt(trial: Callable[..., Any]) -> None:
    job = trial().job
    digests = {stage_config(job, StageName.SFT, k, {}, PLACEMENT).config_digest for k in (1, 2)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("template", "own", "gpus"),
    [
        (None, None, 0),
        ({"limits": {"nvidia.com/gpu": 8}}, None, 8),
        ({"limits": {"nvidia.com/gpu": 8}}, {"requests": {"memory": "1Gi"}}, 8),
        ({"limits": {"nvidia.com/gpu": 8}}, {"limits": {"memory": "1Gi"}}, 0),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"amd.com/gpu": 2}}, 2),
    ],
)
def test_gpus_are_told_and_change_no_digest(
    trial: Callable[..., Any], template: Any, own: Any, gpus: int
) -> None:
    """As in the pod, where a stage's limits replace those of the template."""
    sft = {"model": {"uri": "hf://a/b"}, "dataset": DATASET}
    plain = trial(stages={"sft": sft}).job
    asking = trial(
        stages={"sft": sft | ({"resources": own} if own else {})},
        template={"resources": template} if template else {},
    ).job
    configs = [stage_config(job, StageName.SFT, 1, {}, PLACEMENT) for job in (plain, asking)]
    assert configs[1].gpus_requested == gpus
    assert StageConfig.from_json(configs[1].to_json()).gpus_requested == gpus
    assert configs[0].config_digest == configs[1].config_digest


def test_a_preset_is_settled(trial: Callable[..., Any]) -> None:
    """A file and its digest hold values: the table may be another one in the next release."""
    ppo = {
        "model": {"uri": "hf://a/b"},
        "rewardModel": {"uri": "hf://a/reward"},
        "dataset": DATASET,
        "gamma": 0.5,
    }
    by_name, by_hand = (
        stage_config(trial(stages={"ppo": ppo | more}).job, StageName.PPO, 1, {}, PLACEMENT)
        for more in (
            {"preset": "report"},
            {"rewardScaling": "RunningStd", "valueNormalization": "None"},
        )
    )
    assert "preset" not in by_name.to_json()
    assert by_name.to_json() == by_hand.to_json()
    assert '"rewardScaling": "RunningStd"' in by_name.to_json()
    assert StageConfig.from_json(by_name.to_json()).ppo == by_name.ppo


def test_every_uri_of_a_stage(trial: Callable[..., Any]) -> None:
    scratch = {"layers": 1, "hiddenSize": 8, "heads": 1, "tokenizer": "file://tok"}
    ppo = {
        "model": {"uri": "scratch://llama", "scratch": scratch},
        "rewardModel": {"uri": "hf://a/reward"},
        "criticModel": {"uri": "pvc://models/critic"},
        "dataset": {"uri": "file://rows.jsonl"},
        "evalDataset": DATASET,
    }
    spec = trial(stages={"ppo": ppo}).job.spec.stages.ppo
    assert dict(uris(spec)) == {
        "model.uri": "scratch://llama",
        "model.scratch.tokenizer": "file://tok",
        "rewardModel.uri": "hf://a/reward",
        "criticModel.uri": "pvc://models/critic",
        "dataset.uri": "file://rows.jsonl",
        "evalDataset.uri": "pvc://data/rows.jsonl",
    }
    assert [claim_of(uri) for uri in ("pvc://data/rows", "pvc://data", "hf://a/b")] == [
        "data",
        "data",
        None,
    ]


def test_a_pass_makes_each_config_once_and_knows_what_is_missing(trial: Callable[..., Any]) -> None:
    configs = Configs(trial().job, {StageName.SFT: SFT}, PLACEMENT)
    assert configs.missing(StageName.REWARD) == []
    assert configs.missing(StageName.PPO) == [StageName.REWARD]
    first = configs.of(StageName.REWARD, 1)
    assert first == stage_config(trial().job, StageName.REWARD, 1, {StageName.SFT: SFT}, PLACEMENT)
    assert configs.of(StageName.REWARD, 1) is first
    assert configs.of(StageName.REWARD, 2).attempt == 2
