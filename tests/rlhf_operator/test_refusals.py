"""What each answer of the API server, and each Event about pods that were not made, means."""

from typing import Any

import pytest

from rlhf_api.names import REFUSALS, Reason
from rlhf_operator.kube import ApiError
from rlhf_operator.refusals import refusal, refusal_of_pods, steady

JOB = 'jobs.batch "a-sft-1" is forbidden: '
PODS = 'pods "a-sft-1-0-x7k2p" is forbidden: '

SENTENCES = [
    (JOB + "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3", "QuotaExceeded"),
    (JOB + "insufficient quota to match these scopes: [{PriorityClass In [x]}]", "QuotaExceeded"),
    (PODS + "failed quota: q: must specify limits.cpu for: trainer", "ResourcesRequired"),
    (PODS + "status unknown for quota: q, resources: pods", "ApiError"),
    (PODS + "maximum cpu usage per Container is 1, but limit is 2", "LimitRangeViolated"),
    (
        PODS + "[minimum memory usage per Pod is 1Gi.  No request is specified, "
        "maximum cpu usage per Pod is 1.  No limit is specified]",
        "LimitRangeViolated",
    ),
    (
        PODS + "cpu max limit to request ratio per Container is 2, but provided ratio is 4.0",
        "LimitRangeViolated",
    ),
    (
        PODS + 'violates PodSecurity "restricted:latest": runAsNonRoot != true (pod must not set '
        "securityContext.runAsNonRoot=false)",
        "PodSecurityViolated",
    ),
    (
        PODS + 'unable to validate against any security context constraint: [provider "anyuid": '
        "Forbidden: not usable by user or serviceaccount]",
        "PodSecurityViolated",
    ),
    (PODS + "no PriorityClass with name urgent was found", "PriorityClassMissing"),
    (
        PODS + 'error looking up service account team/x: serviceaccount "x" not found',
        "ServiceAccountMissing",
    ),
    (PODS + 'pod rejected: RuntimeClass "nvidia" not found', "RuntimeClassMissing"),
    (
        JOB + "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: exceeded quota: no",
        "PolicyDenied",
    ),
    (JOB + "policy 'p' with binding 'b' denied request: no", "PolicyDenied"),
    ('admission webhook "w.example.com" denied the request: exceeded quota: no', "WebhookDenied"),
    ('admission webhook "w.example.com" denied the request without explanation', "WebhookDenied"),
    (
        'Internal error occurred: failed calling webhook "w": failed to call webhook: Post '
        '"https://127.0.0.1:1/?timeout=10s": dial tcp 127.0.0.1:1: connect: connection refused',
        "WebhookUnavailable",
    ),
    (
        'admission plugin "MutatingAdmissionWebhook" failed to complete mutation in 13s',
        "WebhookUnavailable",
    ),
    (
        'admission plugin "ValidatingAdmissionWebhook" failed to complete validation in 13s',
        "WebhookUnavailable",
    ),
    (
        'Internal error occurred: admission webhook "w.example.com" attempted to modify the '
        "object, which is not supported for this kind of request",
        "WebhookFailed",
    ),
    ('admission webhook "w.example.com" does not support dry run', "WebhookFailed"),
    ('Internal error occurred: admission webhook "w" denied the request: no', "WebhookDenied"),
    (
        "Internal error occurred: add operation does not apply: doc is missing path: "
        '"/metadata/annotations/a": missing value',
        "WebhookFailed",
    ),
    (
        "Internal error occurred: testing value /spec/suspend failed: test failed",
        "WebhookFailed",
    ),
    (PODS + "pod node label selector conflicts with its namespace node label", "AdmissionDenied"),
    (
        'jobs.batch is forbidden: User "u" cannot create resource "jobs" in API group "batch" in '
        'the namespace "team"',
        "Forbidden",
    ),
    (
        'persistentvolumeclaims "runs" is forbidden: User "u" cannot get resource '
        '"persistentvolumeclaims" in API group "" in the namespace "team"',
        "Forbidden",
    ),
    (
        JOB + "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't "
        "set finalizers on: , <nil>",
        "Forbidden",
    ),
    (
        JOB + "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for "
        "APIVersion rlhf.dev/v1alpha1 Kind RLHFJob: no matches",
        "ApiError",
    ),
    (
        JOB + "unable to create new content in namespace team because it is being terminated",
        "NamespaceTerminating",
    ),
    ("etcdserver: request timed out", "ApiError"),
]


@pytest.mark.parametrize(("sentence", "reason"), SENTENCES)
@pytest.mark.parametrize("status", [400, 403, 422, 500])
def test_an_answer_is_judged_by_what_it_says(sentence: str, reason: str, status: int) -> None:
    """A policy may choose its status, and a webhook says what fields it likes."""
    fields = [{"field": "spec.template", "reason": "FieldValueInvalid"}]
    own = "ebhook" in reason or "denied request" in sentence
    body: dict[str, Any] = {"message": sentence, "details": {"causes": fields if own else []}}
    if status != 403 and reason == "AdmissionDenied":
        reason = "ApiError"
    if status == 403 and reason == "ApiError" and sentence.startswith("etcd"):
        reason = "AdmissionDenied"
    found = refusal("Job a-sft-1", ApiError("POST /jobs", status, body))
    assert (found.reason.value, found.final, found.child) == (reason, False, "Job a-sft-1")
    assert found.reason in REFUSALS
    assert found.message.startswith("Job a-sft-1: ")


@pytest.mark.parametrize(("sentence", "reason"), SENTENCES)
@pytest.mark.parametrize("before", ["", "(combined from similar events): "])
def test_refused_pods_have_the_same_reasons(sentence: str, reason: str, before: str) -> None:
    found = refusal_of_pods("a-sft-1", f"{before}Error creating: {sentence}")
    assert (found.reason.value, found.final) == (reason, False)
    assert found.message.startswith("Job a-sft-1: ")
    assert "similar events" not in found.message
    answer = refusal("Job a-sft-1", ApiError("POST /jobs", 403, {"message": sentence}))
    if reason not in ("Forbidden", "ApiError"):
        assert found.message.rsplit("; ", 1)[1] == answer.message.rsplit("; ", 1)[1]


SENT = {
    "metadata": {"name": "a-sft-1"},
    "spec": {"template": {"spec": {"priorityClassName": "Not A Name"}}},
}


@pytest.mark.parametrize(
    ("status", "fields", "final"),
    [(422, ["spec.template.spec.priorityClassName"], True), (422, [], False), (400, [], False)],
)
def test_only_a_field_that_the_api_server_names_is_the_user_s_mistake(
    status: int, fields: list[str], final: bool
) -> None:
    causes = [{"field": field, "message": "Invalid value"} for field in fields]
    message = 'Job.batch "a-sft-1" is invalid: spec.template.spec.priorityClassName: Invalid'
    body = {"message": message, "details": {"causes": causes}}
    found = refusal("Job a-sft-1", ApiError("POST /jobs", status, body), sent=SENT)
    assert found.final is final
    assert found.reason is (Reason.INVALID_SPEC if final else Reason.API_ERROR)


@pytest.mark.parametrize(
    ("status", "message", "is_final_if_small"),
    [
        (413, "Request entity too large: limit is 3145728", True),
        (500, "etcdserver: request is too large", False),
        (
            500,
            "rpc error: code = ResourceExhausted desc = trying to send message larger than max "
            "(2200000 vs. 2097152)",
            False,
        ),
    ],
)
def test_what_is_too_large_does_not_become_smaller(
    status: int, message: str, is_final_if_small: bool
) -> None:
    """etcd stores what webhooks have made of a manifest, too."""
    error = ApiError("POST /jobs", status, {"message": message})
    large = SENT | {"data": {"stage.json": "x" * 1_600_000}}
    found = refusal("Job a-sft-1", error, sent=large)
    assert (found.reason, found.final) == (Reason.INVALID_SPEC, True)
    assert found.message.endswith(
        "; take fewer or shorter env values, labels and annotations in a new job"
    )
    assert refusal("Job a-sft-1", error, sent=SENT).final is is_final_if_small
    told = refusal("deleting Job a-sft-1", error, making=False)
    assert (told.reason, told.final) == (Reason.API_ERROR, False)


def test_no_other_spec_is_asked_for_where_a_child_is_to_go() -> None:
    what = "deleting Job a-sft-1"
    for sentence in (
        'admission webhook "w" denied the request: no',
        "policy 'p' denied request: no",
    ):
        told = refusal(what, ApiError("DELETE", 403, {"message": sentence}), making=False)
        assert told.message == f"{what}: {sentence}; let the operator do it there"
    causes = [{"field": "preconditions.uid", "message": "Invalid value"}]
    body = {"message": "invalid", "details": {"causes": causes}}
    told = refusal(what, ApiError("DELETE", 422, body), making=False)
    assert (told.reason, told.final) == (Reason.API_ERROR, False)


@pytest.mark.parametrize(
    ("status", "message", "at_least"),
    [
        (403, JOB + "exceeded quota: q, requested", 15),
        (
            403,
            JOB + "cannot set blockOwnerDeletion in this case because cannot find RESTMapping",
            3,
        ),
        (403, JOB + "unable to create new content in namespace x: it is being terminated", 60),
        (400, 'admission webhook "w" denied the request: no', 15),
        (500, 'Internal error occurred: failed calling webhook "w": EOF', 2),
        (429, "too many requests", 7),
        (500, "etcdserver: timeout", 0),
        (0, "refused", 0),
    ],
)
def test_when_it_is_tried_again(status: int, message: str, at_least: float) -> None:
    error = ApiError("POST /jobs", status, {"message": message}, 7 if status == 429 else None)
    assert refusal("Job a-sft-1", error).at_least == at_least


def test_an_error_without_a_sentence_names_the_request() -> None:
    assert str(ApiError("GET /x", 503, {})) == "GET /x was answered by 503"


@pytest.mark.parametrize(
    "sentence",
    [
        'pods "{}" is forbidden: no PriorityClass with name x was found',
        'admission webhook "w" denied the request: Pod/team/{}: not signed',
        'admission webhook "w" denied the request: resource Pod/team/{} was blocked\n\n  by p',
        'Pod "{}" is invalid: spec.containers[0].resources.requests: Invalid value: "2"',
        "pods \"{0}\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: {0}: no",
        "{}.demo.team.svc is no host",
    ],
)
def test_pods_that_are_tried_one_after_another_are_told_in_the_same_words(sentence: str) -> None:
    names = ("a-sft-1-0-x7k2p", "a-sft-1-0-abcde", "a-sft-1-12-zzz99", "a-sft-1-3-", "a-sft-1-7")
    texts = {refusal_of_pods("a-sft-1", f"Error creating: {sentence.format(n)}") for n in names}
    (told,) = texts
    assert "\n" not in told.message
    assert not any(name in told.message for name in names)


def test_other_names_stay() -> None:
    told = refusal_of_pods("a-sft-1", PODS + 'exceeded quota: a-sft-10-0-x7k2p of "b-a-sft-1-0-y"')
    assert "exceeded quota: a-sft-10-0-... of" in told.message
    assert '"b-a-sft-1-0-y"' in told.message
    assert told.message.startswith("Job a-sft-1: pods are forbidden: exceeded quota: ")


def test_a_pod_that_is_invalid_by_what_others_add_to_it_is_no_mistake_of_the_job() -> None:
    text = (
        'Error creating: Pod "a-sft-1-0-x7k2p" is invalid: spec.containers[0].resources.requests: '
        'Invalid value: "2": must be less than or equal to cpu limit of 1'
    )
    told = refusal_of_pods("a-sft-1", text)
    assert (told.reason, told.final) == (Reason.INVALID_POD, False)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("trace 6b1f0c9e-8a52-4c1d-9d0e-0d7f6a1b2c3d", "trace ..."),
        ("trace 6b1f0c9e8a52", "trace ..."),
        ("trace 01HZX3J8Q4N6T2V9B7C5D3F1G0", "trace ..."),
        ("error at 0xc0002", "error at ..."),
        ("at 2026-01-02T03:04:05.678Z", "at ..."),
        ("at 2026-01-02 03:04:05+00:00", "at ..."),
        ("request 1234567", "request ..."),
        ("after 10.002s, 1m2.5s, 12.5ms or 300ms", "after ..., ..., ... or ..."),
        ("read tcp 10.0.0.1:51514->10.96.1.2:443: reset", "read tcp ...->10.96.1.2:443: reset"),
        ("read tcp [::1]:51514->[::1]:443: reset", "read tcp ...->[::1]:443: reset"),
        ("1, used: cpu=2,memory=1Gi, limited: cpu=3", "1, used: ..., limited: cpu=3"),
        ("pods demo-sft-3-0-x7k2p", "pods demo-sft-3-0-..."),
        ("blocked\n\n  by  p\n", "blocked by p"),
        ("namespace team-085d64e4 and claim runs-20260102", None),
        ("port 9400, uid 12345, demo-sft-3-0-adieu", None),
        ("must be at least 300s, timeout=10s, version 1.29.3", None),
    ],
)
def test_what_varies_is_left_out(text: str, kept: str | None) -> None:
    assert steady(text) == (text if kept is None else kept)


HOOK = 'admission webhook "a.b" denied the request: '


@pytest.mark.parametrize(
    ("status", "reason", "message", "gone"),
    [
        (404, "NotFound", 'jobs.batch "a" not found', True),
        (404, "NotFound", f'{HOOK}jobs.batch "a" not found', False),
        (404, None, "404 page not found", False),
        (
            409,
            "Conflict",
            'Operation cannot be fulfilled on Job.batch "a": the UID in the precondition (1) does '
            "not match the UID in record (2). The object might have been deleted and recreated",
            True,
        ),
        (
            409,
            "Conflict",
            'Operation cannot be fulfilled on jobs.batch "a": Precondition failed: UID in '
            "precondition: 1, UID in object meta: 2",
            True,
        ),
        (409, "Conflict", f"{HOOK}UID in precondition: no", False),
        (409, "Conflict", f"{HOOK}deletion is protected", False),
        (409, "Conflict", 'Operation cannot be fulfilled on jobs.batch "a": try again', False),
        (403, "Forbidden", "UID in precondition", False),
        (0, "NotFound", "no answer", False),
    ],
)
def test_what_is_gone_is_what_the_api_server_says_is(
    status: int, reason: str | None, message: str, gone: bool
) -> None:
    body = {"message": message} | ({} if reason is None else {"reason": reason})
    assert ApiError("DELETE /jobs/a", status, body).says_gone() is gone
