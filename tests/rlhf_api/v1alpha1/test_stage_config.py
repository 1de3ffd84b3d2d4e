"""What goes into a pod and comes out of it: round trips, digests, sizes, refusals."""

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_api.errors import ConfigError, ContractVersionError
from rlhf_api.names import (
    CONTRACT_VERSION,
    MAX_RESULT_BYTES,
    GuardrailAction,
    GuardrailRule,
    Reason,
    StageName,
)
from rlhf_api.v1alpha1 import (
    Artifact,
    HealthVerdict,
    JobReference,
    SFTStage,
    StageConfig,
    StageResult,
)
from rlhf_api.v1alpha1.bounds import bounded_text

DIGEST = "sha256:" + "0" * 64


def make_config(**changes: Any) -> StageConfig:
    fields: dict[str, Any] = {
        "job": JobReference(name="reviews", uid="0b5c1c4e-8f57"),
        "stage": StageName.SFT,
        "attempt": 1,
        "storage": "/runs",
        "sft": SFTStage.model_validate(
            {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
        ),
    }
    return StageConfig(**fields | changes)


def make_result(**changes: Any) -> StageResult:
    fields: dict[str, Any] = {
        "stage": StageName.SFT,
        "attempt": 1,
        "config_digest": DIGEST,
        "exit_code": 1,
        "reason": Reason.CRASHED,
    }
    return StageResult(**fields | changes)


def test_folders() -> None:
    config = make_config(attempt=2)
    assert config.attempt_folder == PurePosixPath("/runs/reviews-0b5c1c4e/sft/attempt-2")
    assert config.artifact_uri == "reviews-0b5c1c4e/sft/attempt-2/artifact"


def test_a_file_comes_back_as_it_was_written() -> None:
    reward = {StageName.REWARD: Artifact(uri="a", digest=DIGEST)}
    config = make_config(artifacts=reward, nodes=2, claims={"data": "/mnt/data"}).with_digest()
    assert StageConfig.from_json(config.to_json()) == config
    assert config.config_digest == config.digest()


def test_a_file_without_a_digest_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"configDigest: is missing; have .* write the file"):
        StageConfig.from_json(make_config().to_json())


def test_a_reader_takes_the_digest_that_it_is_given() -> None:
    document = json.loads(make_config().to_json()) | {"configDigest": DIGEST}
    assert StageConfig.from_json(json.dumps(document)).config_digest == DIGEST


def test_the_stage_is_the_one_that_is_set() -> None:
    with pytest.raises(ValidationError, match="stage is reward, but the specification is of"):
        make_config(stage=StageName.REWARD)


@pytest.mark.parametrize(
    "version", [CONTRACT_VERSION - 1, CONTRACT_VERSION + 1, None, str(CONTRACT_VERSION)]
)
def test_another_contract_version_names_both(version: object) -> None:
    document = json.loads(make_config().to_json()) | {"contractVersion": version}
    with pytest.raises(ContractVersionError) as caught:
        StageConfig.from_json(json.dumps(document | {"fieldOfTomorrow": 1}))
    assert f"contractVersion is {version!r}" in str(caught.value)
    assert f"speaks {CONTRACT_VERSION};" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "stage.json is not JSON"),
        ("[]", "contractVersion is None"),
        (f'{{"contractVersion": {CONTRACT_VERSION}}}', "stage.json: job: is missing; add it"),
    ],
)
def test_a_broken_file_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StageConfig.from_json(text)


@given(st.text(max_size=100), st.integers(0, 200))
def test_a_result_fits_and_stays_readable(message: str, copies: int) -> None:
    result = make_result(message=message * (copies + 1))
    text = result.to_message()
    assert len(text.encode()) <= MAX_RESULT_BYTES
    read = StageResult.from_message(text)
    assert read is not None
    assert read.message == bounded_text(result.message, len(read.message))
    assert read.model_copy(update={"message": ""}) == result.model_copy(update={"message": ""})


@pytest.mark.parametrize("character", ["x", "好", "😀", '"', "\n", "\x00"])
def test_a_long_message_loses_its_middle_and_little_more(character: str) -> None:
    text = make_result(message=character * 9000 + "; correct it").to_message()
    assert MAX_RESULT_BYTES - 6 < len(text.encode()) <= MAX_RESULT_BYTES
    assert json.loads(text)["message"].endswith(f"{character}; correct it")


def test_a_short_message_is_kept() -> None:
    result = make_result(message="stages.sft.dataset: 没有 rows", metrics={"loss": 0.5}, step=3)
    assert StageResult.from_message(result.to_message()) == result


def test_telling_a_failure_does_not_fail() -> None:
    result = make_result(
        message="\udce9" + "x" * 100_000, metrics={"loss": float("nan"), "kl": float("inf"), "a": 1}
    )
    read = StageResult.from_message(result.to_message())
    assert read is not None
    assert read.message.startswith("?xxx")
    assert read.metrics == {"a": 1}


@pytest.mark.parametrize("version", [0, CONTRACT_VERSION + 1])
def test_a_result_of_another_release_is_told_apart(version: int) -> None:
    document = json.loads(make_result().to_message()) | {"contractVersion": version}
    with pytest.raises(ContractVersionError) as caught:
        StageResult.from_message(json.dumps(document | {"fieldOfTomorrow": 1}))
    assert f"contractVersion is {version}, but this" in str(caught.value)
    assert f"speaks {CONTRACT_VERSION}; use a trainer image and an" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "Killed", "{}", "[]", "[" * 4096, '{"stage": "sft"}', '{"contractVersion": "x"}'],
)
def test_other_termination_messages_hold_no_result(text: str) -> None:
    assert StageResult.from_message(text) is None


def test_a_result_too_long_without_message_says_so() -> None:
    wide = Artifact(uri="好" * 2048, digest=DIGEST)
    with pytest.raises(ValueError, match="without message exceeds 4096"):
        make_result(artifact=wide).to_message()


LARGEST_VERDICTS = tuple(
    HealthVerdict(
        rule=rule,
        action=GuardrailAction.SUSPEND,
        step=1_000_000,
        value=-1.2345678901234567e-300,
        threshold=-999_999_999.1234567,
    )
    for rule in GuardrailRule
)


def test_all_verdicts_and_metrics_fit_with_a_message() -> None:
    result = make_result(
        artifact=Artifact(uri="a" * 600, digest=DIGEST),
        verdicts=LARGEST_VERDICTS,
        metrics={f"some_metric_of_ppo_{i}": -1.2345678901234567e-300 for i in range(32)},
        message="x" * 4096,
    )
    text = result.to_message()
    assert MAX_RESULT_BYTES - 6 < len(text.encode()) <= MAX_RESULT_BYTES
    read = StageResult.from_message(text)
    assert read is not None
    assert (read.verdicts, read.artifact) == (result.verdicts, result.artifact)
    assert len(read.message) >= 512
    # Those of status come first, and are the last to give way.
    assert 12 <= len(read.metrics) < 32
    assert list(read.metrics.items()) == list(result.metrics.items())[: len(read.metrics)]


def test_metrics_give_way_to_verdicts_altogether_and_the_message_after_them() -> None:
    result = make_result(
        artifact=Artifact(uri="a" * 2048, digest=DIGEST),
        verdicts=LARGEST_VERDICTS,
        metrics={"loss": 0.5},
        message="x" * 4096,
    )
    read = StageResult.from_message(result.to_message())
    assert read is not None
    assert (read.verdicts, read.artifact, read.metrics) == (result.verdicts, result.artifact, {})
    assert 0 < len(read.message) < 512


def test_only_the_names_of_the_documents_are_read() -> None:
    """Whoever writes Python's names elsewhere would be heard here and nowhere else."""
    config = make_config().with_digest().to_json()
    with pytest.raises(ConfigError, match=r"config_digest: is unknown.*did you mean configDigest"):
        StageConfig.from_json(config.replace("configDigest", "config_digest"))
    result = make_result().to_message()
    assert StageResult.from_message(result) == make_result()
    assert StageResult.from_message(result.replace("exitCode", "exit_code")) is None
