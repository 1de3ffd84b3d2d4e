"""What each answer of the API server means."""

import pytest

from rlhf_api.names import Reason
from rlhf_operator.kube import ApiError
from rlhf_operator.refusals import refusal, steady

TERMINATING = {
    "message": "namespace x is being terminated",
    "details": {"causes": [{"reason": "NamespaceTerminating"}]},
}


@pytest.mark.parametrize(
    ("status", "body", "reason", "final", "at_least"),
    [
        (403, {"message": "exceeded quota: q, requested"}, Reason.QUOTA_EXCEEDED, False, 15),
        (403, {"message": "cannot create jobs"}, Reason.FORBIDDEN, False, 15),
        (403, {"message": "cannot find RESTMapping for Kind"}, Reason.API_ERROR, False, 3),
        (403, TERMINATING, Reason.NAMESPACE_TERMINATING, False, 60),
        (422, {"message": "spec.x: invalid"}, Reason.INVALID_SPEC, True, 0),
        (400, {"message": "cannot be parsed"}, Reason.INVALID_SPEC, True, 0),
        (400, {"message": 'webhook "w" denied the request: no'}, Reason.FORBIDDEN, False, 15),
        (422, {"message": "policy 'p' denied request: no"}, Reason.FORBIDDEN, False, 15),
        (429, {}, Reason.API_ERROR, False, 7),
        (500, {"message": "etcdserver: timeout"}, Reason.API_ERROR, False, 0),
        (0, {"message": "refused"}, Reason.API_ERROR, False, 0),
    ],
)
def test_each_answer(
    status: int, body: dict[str, object], reason: Reason, final: bool, at_least: float
) -> None:
    error = ApiError("POST /jobs", status, body, 7 if status == 429 else None)
    found = refusal("Job a-sft-1", error)
    assert (found.reason, found.final, found.at_least) == (reason, final, at_least)
    assert found.message.startswith("Job a-sft-1: ")
    if "message" in body:
        assert str(body["message"]) in found.message


def test_an_error_without_a_sentence_names_the_request() -> None:
    assert str(ApiError("GET /x", 503, {})) == "GET /x was answered by 503"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("trace 6b1f0c9e-8a52-4c1d-9d0e-0d7f6a1b2c3d", "trace ..."),
        ("trace 6b1f0c9e8a52", "trace ..."),
        ("at 2026-01-02T03:04:05.678Z", "at ..."),
        ("at 2026-01-02 03:04:05+00:00", "at ..."),
        ("request 1234567", "request ..."),
        ("pods demo-sft-3-0-x7k2p", "pods demo-sft-3-0-..."),
        ("namespace team-085d64e4 and claim runs-20260102", None),
        ("port 9400, uid 12345, demo-sft-3-0-adieu", None),
    ],
)
def test_what_varies_is_left_out(text: str, kept: str | None) -> None:
    assert steady(text) == (text if kept is None else kept)
