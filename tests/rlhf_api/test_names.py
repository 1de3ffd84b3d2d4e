"""The vocabulary: what other files derive from it."""

import re

import pytest

from rlhf_api import names
from rlhf_api.names import ExitCode, FailureClass, Reason, StageName


def test_names_of_children_stay_dns_labels() -> None:
    longest = max(len(stage) for stage in StageName)
    attempts, suffix_of_a_pod = len("-999"), len("-1023-xxxxx")
    assert names.MAX_JOB_NAME_LENGTH + 1 + longest + attempts + suffix_of_a_pod <= 63


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, FailureClass.CRASH),
        (42, FailureClass.GUARDRAIL),
        (64, FailureClass.USER_ERROR),
        (65, FailureClass.USER_ERROR),
        (66, FailureClass.USER_ERROR),
        (69, FailureClass.CRASH),
        (70, FailureClass.USER_ERROR),
        (74, FailureClass.CRASH),
        (75, FailureClass.STOPPED),
        (77, FailureClass.USER_ERROR),
        (78, FailureClass.USER_ERROR),
        (80, FailureClass.PEER_LOST),
        (137, FailureClass.CRASH),
        (143, FailureClass.STOPPED),
        (255, FailureClass.CRASH),
    ],
)
def test_failure_class(code: int, expected: FailureClass) -> None:
    assert names.failure_class(code) is expected


def test_success_is_no_failure() -> None:
    with pytest.raises(ValueError, match="no failure"):
        names.failure_class(0)


def test_every_exit_code_but_success_and_crashes_has_a_reason() -> None:
    plain = {ExitCode.DONE, ExitCode.CRASH, ExitCode.KILLED}
    assert set(names.REASON_OF_EXIT_CODE) == set(ExitCode) - plain


@pytest.mark.parametrize("reason", list(Reason))
def test_reasons_are_camel_case_words(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]{1,63}", reason)
