"""The folder of a job keeps its document and keeps others out; see test_runner for whole runs."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_api.errors import ConfigError, UsageError
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobSpec
from rlhf_cli.workdir import Workdir, determining, first_difference

FILE = Path("job.yaml")


def make_job(seed: int = 42, **spec: Any) -> RLHFJob:
    sft = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}, "seed": seed}
    return RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews", "labels": {"team": "a"}},
            "spec": {"stages": {"sft": sft}} | spec,
        }
    )


def test_the_document_comes_back_with_its_uid(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, "reviews")
    job = workdir.load(make_job(), FILE)
    assert not workdir.folder.exists()
    with workdir.locked():
        workdir.save(job)
    again = workdir.load(make_job(), FILE)
    assert again.metadata == job.metadata
    assert (again.spec, again.status) == (job.spec, job.status)
    assert RLHFJob.from_file(workdir.folder / "status.yaml").metadata.labels == {"team": "a"}


def test_a_changed_policy_is_another_generation(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, "reviews")
    with workdir.locked():
        workdir.save(workdir.load(make_job(), FILE))
    changed = workdir.load(make_job(runPolicy={"maxRestarts": 9}, suspend=True), FILE)
    assert (changed.metadata.generation, changed.spec.run_policy.max_restarts) == (2, 9)


def test_two_cannot_hold_the_lock(tmp_path: Path) -> None:
    with Workdir(tmp_path, "reviews").locked():
        with (
            pytest.raises(UsageError, match="another rlhf run"),
            Workdir(tmp_path, "reviews").locked(),
        ):
            pass
        with Workdir(tmp_path, "other").locked():
            pass
    with Workdir(tmp_path, "reviews").locked():
        pass


@pytest.mark.parametrize("text", ["", "spec: [", "kind: Pod\napiVersion: v1\n"])
def test_a_damaged_document_is_named(tmp_path: Path, text: str) -> None:
    workdir = Workdir(tmp_path, "reviews")
    workdir.folder.mkdir()
    (workdir.folder / "status.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"status.yaml is damaged .* remove the folder"):
        workdir.load(make_job(), FILE)


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, ("x.a", "1", "2")),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, ("x.a.c", "2", "not set")),
        ({}, {"a": [1]}, ("x.a", "not set", "[1]")),
        ({"a": True}, {"a": 1}, ("x.a", "True", "1")),
        ({"a": {"b": 1}}, {"a": "s"}, ("x.a", "{'b': 1}", "s")),
    ],
)
def test_the_first_difference(old: Any, new: Any, difference: Any) -> None:
    assert first_difference(old, new, "x") == difference


def test_how_patiently_a_reward_is_asked_may_change_in_a_run() -> None:
    def determined(**endpoint: Any) -> dict[str, Any]:
        reward = {"name": "judge", "type": "Endpoint", "endpoint": {"url": "http://a"} | endpoint}
        ppo = {
            "model": {"uri": "hf://org/base"},
            "dataset": {"uri": "hf://org/prompts"},
            "rewards": [reward],
        }
        return determining(RLHFJobSpec.model_validate({"stages": {"ppo": ppo}}))

    assert determined(retries=1, timeoutSeconds=5, batchSize=8, tokenEnv="T") == determined()
    assert determined(url="http://b") != determined()
