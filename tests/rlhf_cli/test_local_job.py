"""A job is made fit for one machine, and its inputs are looked for."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_api.errors import InputError, UsageError
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli.local_job import (
    check_inputs,
    describe,
    local_environment,
    local_warnings,
    localized,
    parse_mounts,
    sampling_warnings,
    unmounted_claims,
)

SCRATCH = {"layers": 1, "hiddenSize": 8, "heads": 1, "tokenizer": "file://tok"}
SFT = {
    "model": {"uri": "scratch://llama", "scratch": SCRATCH},
    "dataset": {"uri": "file://rows.jsonl"},
    "evalDataset": {"uri": "pvc://data/eval/rows.jsonl"},
}
PPO = {
    "model": {"fromStage": "sft"},
    "rewardModel": {"uri": "file:///abs/reward"},
    "criticModel": {"uri": "hf://org/critic"},
    "dataset": {"uri": "pvc://data"},
    "maxSteps": 7,
}


def make_job(**spec: Any) -> RLHFJob:
    return RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews"},
            "spec": {"stages": {"sft": SFT, "ppo": PPO}} | spec,
        }
    )


def test_paths_are_taken_from_the_jobs_folder(tmp_path: Path) -> None:
    stages = localized(make_job(), tmp_path).spec.stages
    assert stages.sft is not None
    assert stages.ppo is not None
    assert stages.sft.dataset.uri == f"file://{tmp_path}/rows.jsonl"
    assert stages.sft.model.uri == "scratch://llama"
    assert stages.sft.model.scratch is not None
    assert stages.sft.model.scratch.tokenizer == f"file://{tmp_path}/tok"
    assert stages.sft.eval_dataset is not None
    assert stages.sft.eval_dataset.uri == "pvc://data/eval/rows.jsonl"
    assert stages.ppo.reward_model.uri == "file:///abs/reward"
    assert stages.ppo.critic_model is not None
    assert stages.ppo.critic_model.uri == "hf://org/critic"


def test_a_rewards_folder_is_taken_from_the_jobs_folder(tmp_path: Path) -> None:
    rewards: list[dict[str, Any]] = [
        {"name": "mine", "type": "Function", "function": {"name": "a:b", "uri": "file://code"}},
        {"name": "ours", "type": "Function", "function": {"name": "a:b"}},
        {"name": "far", "type": "Endpoint", "endpoint": {"url": "http://scores"}},
    ]
    ppo = {key: value for key, value in PPO.items() if key != "rewardModel"}
    job = localized(make_job(stages={"sft": SFT, "ppo": ppo | {"rewards": rewards}}), tmp_path)
    assert job.spec.stages.ppo is not None
    mine, ours, far = job.spec.stages.ppo.rewards
    assert mine.function is not None
    assert mine.function.uri == f"file://{tmp_path}/code"
    assert ours.function is not None
    assert ours.function.uri is None
    assert far.function is None
    with pytest.raises(InputError, match=r"ppo.rewards\[0\].function.uri: .*code does not exist"):
        check_inputs(job, {"data": str(tmp_path)})


@pytest.mark.parametrize(
    ("size", "gpus"),
    [
        ({}, 0),
        ({"resources": {"limits": {"nvidia.com/gpu": 2}}}, 2),
        ({"resources": {"limits": {"amd.com/gpu": 2}}, "nodes": 3, "processesPerNode": 2}, 6),
        ({"resources": {"limits": {"memory": "1Gi"}}, "nodes": 2}, 0),
    ],
)
def test_the_gpus_of_all_nodes_are_asked_of_one(
    tmp_path: Path, size: dict[str, Any], gpus: int
) -> None:
    job = localized(make_job(stages={"sft": SFT | {"batchSize": 12} | size}), tmp_path)
    assert job.spec.gpus("sft") == gpus


def test_ranks_are_brought_to_one_node(tmp_path: Path) -> None:
    job = make_job(
        template={"nodes": 2, "processesPerNode": 2},
        stages={"sft": SFT, "ppo": PPO | {"processesPerNode": 1}},
    )
    spec = localized(job, tmp_path).spec
    assert [(spec.nodes(n), spec.processes_per_node(n)) for n in ("sft", "ppo")] == [(1, 4), (1, 2)]
    assert len(list(local_warnings(job))) == 2


def test_every_missing_input_is_named(tmp_path: Path) -> None:
    job = localized(make_job(), tmp_path)
    with pytest.raises(InputError) as caught:
        check_inputs(job, {})
    lines = str(caught.value).splitlines()
    assert [each.split(":")[0] for each in lines] == [
        "spec.stages.sft.model.scratch.tokenizer",
        "spec.stages.sft.dataset.uri",
        "spec.stages.sft.evalDataset.uri",
        "spec.stages.ppo.rewardModel.uri",
        "spec.stages.ppo.dataset.uri",
    ]
    assert "add --mount data=path" in lines[2]
    assert unmounted_claims(job, {}) == ["data"]
    with pytest.raises(InputError) as caught:
        check_inputs(job, {}, all_claims=False)
    assert "pvc" not in str(caught.value)


def test_inputs_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "eval").mkdir()
    (tmp_path / "rows.jsonl").touch()
    stages = {"sft": SFT, "ppo": PPO | {"rewardModel": {"uri": "file://tok"}}}
    job = localized(make_job(stages=stages), tmp_path)
    with pytest.raises(InputError, match=r"evalDataset.*eval/rows\.jsonl does not exist"):
        check_inputs(job, {"data": str(tmp_path)})
    (tmp_path / "eval" / "rows.jsonl").touch()
    check_inputs(job, {"data": str(tmp_path)})
    assert unmounted_claims(job, {"data": str(tmp_path)}) == []


def of_function(name: str, uri: str | None) -> dict[str, Any]:
    function = {"name": name} | ({} if uri is None else {"uri": uri})
    ppo = {key: value for key, value in PPO.items() if key not in ("rewardModel", "criticModel")}
    reward = {"name": "mine", "type": "Function", "function": function}
    return ppo | {"model": {"uri": "hf://org/base"}, "rewards": [reward]}


@pytest.mark.parametrize(
    ("name", "uri", "said"),
    [
        ("mine:f", "file://code", None),
        ("package:f", "file://code", None),
        ("package.inner:f", "file://code", None),
        ("plain.inner:f", "pvc://data/code", None),
        # What lies in the image, or in a claim without a folder here, is not known.
        ("missing:f", None, None),
        ("missing:f", "pvc://other/code", None),
        ("missing:f", "file://code", "function.name: missing:f: {}/code holds no module missing; "),
        (
            "missing:f",
            "pvc://data/code",
            "function.name: missing:f: {}/code holds no module missing",
        ),
        ("package.outer:f", "file://code", "{}/code holds no module package.outer; put it there"),
        ("mine.inner:f", "file://code", "{}/code holds no module mine.inner; put it there"),
        # Of the standard library, and no module of that folder.
        ("json:f", "file://code", "{}/code holds no module json; put it there, or correct name"),
        ("mine:f", "file://code/mine.py", "function.uri: file://{}/code/mine.py: "),
    ],
)
def test_the_module_of_a_reward_is_looked_for(
    tmp_path: Path, name: str, uri: str | None, said: str | None
) -> None:
    for path in ("mine.py", "package/__init__.py", "package/inner.py", "plain/inner.py"):
        file = tmp_path / "code" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise RuntimeError('was run')\n")
    job = localized(make_job(stages={"ppo": of_function(name, uri)}), tmp_path)
    mounts = {"data": str(tmp_path)}
    if said is None:
        check_inputs(job, mounts, all_claims=False)
        return
    with pytest.raises(InputError) as caught:
        check_inputs(job, mounts, all_claims=False)
    assert str(caught.value).startswith("spec.stages.ppo.rewards[0].function.")
    assert said.format(tmp_path) in str(caught.value)


@pytest.mark.parametrize("uri", ["file://judge", "pvc://data/judge"])
def test_model_statistics_are_looked_for(tmp_path: Path, uri: str) -> None:
    (tmp_path / "judge").mkdir()
    ppo = PPO | {"model": {"uri": "hf://org/base"}, "rewardModel": {"uri": uri}}
    mounts = {"data": str(tmp_path)}

    def job(**changes: Any) -> RLHFJob:
        return localized(make_job(stages={"ppo": ppo | changes}), tmp_path)

    check_inputs(job(), mounts)
    wanted = job(rewardScaling="ModelStats")
    with pytest.raises(InputError) as caught:
        check_inputs(wanted, mounts)
    assert str(caught.value) == (
        f"spec.stages.ppo.rewardScaling: ModelStats: {tmp_path}/judge/reward_statistics.json does "
        "not exist; name a rewardModel that stages.reward has trained with an evalDataset, or "
        "choose RunningStdTotal"
    )
    (tmp_path / "judge" / "reward_statistics.json").write_text("{}")
    check_inputs(wanted, mounts)
    check_inputs(job(rewardScaling="ModelStats", rewardModel={"uri": "hf://a/b"}), mounts)


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert parse_mounts(["data=a=b"]) == {"data": str(tmp_path / "a=b")}
    for text in ("data", "data=", "=x"):
        with pytest.raises(UsageError, match="claim=path"):
            parse_mounts([text])
    with pytest.raises(UsageError, match="stands twice"):
        parse_mounts(["data=.", "data=."])
    with pytest.raises(InputError, match="is no folder"):
        parse_mounts(["data=missing"])


def test_environment_by_value(tmp_path: Path) -> None:
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    template = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}, secret]}
    job = make_job(
        template=template,
        stages={"sft": SFT | {"env": [{"name": "B", "value": "2"}]}},
    )
    assert job.spec.stages.sft is not None
    assert local_environment(job, job.spec.stages.sft) == {"A": "1", "B": "2"}
    assert [text.split(";")[0] for text in local_warnings(job)] == [
        "spec.stages.sft: environment variable TOKEN comes from the cluster and is not set here"
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, []),
        ({"topK": 0, "topP": 1}, []),
        ({"topK": 50}, ["spec.stages.ppo: topK leaves tokens out of sampling"]),
        ({"topP": 0.9}, ["spec.stages.ppo: topP leaves tokens out of sampling"]),
        (
            {"topK": 50, "topP": 0.9},
            ["spec.stages.ppo: topK and topP leave tokens out of sampling"],
        ),
    ],
)
def test_a_kl_that_truncated_sampling_biases_is_told(
    fields: dict[str, float], told: list[str]
) -> None:
    stages = {"sft": SFT, "ppo": PPO | fields}
    said = list(sampling_warnings(make_job(stages=stages)))
    assert [text.split(",")[0] for text in said] == told
    remedies = ["remove them unless" if "and topP" in text else "remove it unless" for text in told]
    assert all(remedy in text for remedy, text in zip(remedies, said, strict=True))
    assert not list(sampling_warnings(make_job(stages={"sft": SFT})))


def test_a_line_for_each_stage() -> None:
    assert list(describe(make_job(template={"nodes": 2}))) == [
        "sft: 2 nodes x 1 rank, 1 epoch, batch 32, model from scratch://llama",
        "ppo: 2 nodes x 1 rank, 7 steps, batch 32, model from stage sft, "
        "rewardModel from file:///abs/reward, criticModel from hf://org/critic",
    ]
