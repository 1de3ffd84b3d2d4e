"""A refusal is told in the same words each time, with the values that it is about."""

from itertools import permutations

import pytest

from rlhf_operator.kube import ApiError
from rlhf_operator.refusals import refusal, refusal_of_pods

PODS = 'Error creating: pods "a-sft-1-0-x7k2p" is forbidden: '
INVALID = 'Error creating: Pod "a-sft-1-0-x7k2p" is invalid: '


@pytest.mark.parametrize(
    "sentence",
    [
        PODS + "maximum memory usage per Pod is 1Gi, but limit is 2147483648",
        PODS + "minimum memory usage per Pod is 1Gi, but request is 104857601",
        PODS + "memory max limit to request ratio per Pod is 2, but provided ratio is 64.000000",
        PODS + "exceeded quota: q, requested: memory=1073741825, used: pods=1, limited: memory=1Gi",
        PODS + "failed quota: q-20260102: must specify limits.cpu for: trainer",
        PODS + "unable to validate against any security context constraint: provider restricted: "
        ".containers[0].runAsUser: Invalid value: 1234567: must be in the ranges: "
        "[1000650000, 1000659999]",
        PODS + "no PriorityClass with name 20260102 was found",
        INVALID + 'spec.containers[0].resources.requests: Invalid value: "1073741825": must be '
        "less than or equal to memory limit of 1073741824",
    ],
)
def test_the_values_that_a_refusal_is_about_are_told(sentence: str) -> None:
    said = sentence.removeprefix(PODS).removeprefix(INVALID).replace("used: pods=1", "used: ...")
    assert said in refusal_of_pods("a-sft-1", sentence).message
    answer = refusal("Job a-sft-1", ApiError("POST /jobs", 403, {"message": sentence[16:]}))
    assert said in answer.message or sentence.startswith(INVALID)


def test_a_size_that_is_too_large_is_told() -> None:
    message = "Request entity too large: limit is 3145728"
    assert message in refusal("Job a", ApiError("POST", 413, {"message": message})).message


def test_a_number_of_a_webhook_is_none_that_it_is_about() -> None:
    hook = 'Error creating: admission webhook "w" denied the request: request 1234567, no'
    assert "request ..., no" in refusal_of_pods("a-sft-1", hook).message


@pytest.mark.parametrize(
    ("before", "parts"),
    [
        (
            PODS,
            (
                "maximum cpu usage per Container is 1, but limit is 2",
                "minimum memory usage per Pod is 1Gi.  No request is specified",
                "memory max limit to request ratio per Pod is 2, but provided ratio is 4.000000",
            ),
        ),
        (
            INVALID,
            (
                'spec.containers[0].resources.requests: Invalid value: "2": must be less than or '
                "equal to cpu limit of 1",
                'spec.containers[0].resources.requests: Invalid value: "2Gi": must be less than '
                "or equal to memory limit of 1Gi",
                "metadata.labels: Invalid value: a, b",
            ),
        ),
    ],
)
def test_what_is_minded_is_told_in_one_order(before: str, parts: tuple[str, ...]) -> None:
    """Kubernetes walks maps, which it does in another order each time."""
    texts = {
        refusal_of_pods("a-sft-1", f"{before}[{', '.join(each)}]").message
        for each in permutations(parts)
    }
    (told,) = texts
    listed = ", ".join(sorted(" ".join(part.split()) for part in parts))
    assert f"[{listed}]; " in told
