"""Whose mistake the API server's validation finds: the user's, or one made on the way."""

import pytest

from rlhf_api.names import REFUSALS, Reason
from rlhf_operator.kube import ApiError
from rlhf_operator.refusals import refusal

APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
CONTAINER = {
    "name": "trainer",
    "image": "a b",
    "env": [{"name": "A"}, {"name": "A"}],
    "resources": {"requests": {"cpu": "2000m"}, "limits": {"foo": "1", "sNaN": "1"}},
    "ports": [{"containerPort": 70000}],
    "volumeMounts": [
        {"name": "a", "mountPath": "/a", "subPath": "b"},
        {"mountPath": "/c", "subPath": "../x"},
    ],
}
SENT = {
    "metadata": {"name": "a-sft-1", "labels": {"x y": "z"}},
    "spec": {
        "template": {
            "metadata": {
                "labels": {"team": "a b"},
                "annotations": {"note": "x" * 200, APPARMOR + "nope": "unconfined"},
            },
            "spec": {
                "priorityClassName": "Not A Name",
                "serviceAccountName": "",
                "containers": [CONTAINER],
            },
        }
    },
}
POD_FIELD = "spec.template.spec."
OURS = [
    (POD_FIELD + "priorityClassName", 'Invalid value: "Not A Name": a lowercase'),
    (POD_FIELD + "containers[0].ports[0].containerPort", "Invalid value: 70000: must be between"),
    # Behind a container that was put before it.
    (POD_FIELD + "containers[1].image", 'Invalid value: "a b": must not have whitespace'),
    (POD_FIELD + "containers[0].resources.requests[cpu]", 'Invalid value: "2": must be an'),
    (POD_FIELD + "containers[0].env[1].name", 'Duplicate value: "A"'),
    (POD_FIELD + "serviceAccountName", "Required value"),
    (POD_FIELD + "restartPolicy", 'Required value: valid values: "OnFailure", "Never"'),
    ("metadata.labels", 'Invalid value: "x y": name part must consist of'),
    ("spec.template.labels", 'Invalid value: "a b": a valid label must be'),
    ("spec.template.annotations", "Too long: may not be more than 150 bytes"),
    (POD_FIELD + "containers", "Forbidden: not here"),
    # The API server leaves out which of the mounts it means.
    (
        POD_FIELD + "containers[0].volumeMounts.subPath",
        'Invalid value: "../x": must not contain',
    ),
    (POD_FIELD + "containers[1].volumeMounts.name", "Required value"),
    # What is wrong is the key.
    (POD_FIELD + "containers[0].resources.limits[foo]", 'Invalid value: "foo": must be a standard'),
    (POD_FIELD + "containers[0].resources.limits[sNaN]", 'Invalid value: "sNaN": must be a'),
    (f"spec.template.annotations[{APPARMOR}nope]", 'Invalid value: "nope": container not found'),
]
OF_OTHERS = [
    (POD_FIELD + "priorityClassName", 'Invalid value: "Neither One": a lowercase'),
    (POD_FIELD + "runtimeClassName", 'Invalid value: "Not A Name": a lowercase'),
    (POD_FIELD + "containers[0].image", 'Invalid value: "b a": must not have whitespace'),
    (POD_FIELD + "containers[1].image", "Required value"),
    (POD_FIELD + "containers[0].name", 'Duplicate value: "trainer"'),
    (POD_FIELD + "containers[0].resources.requests[cpu]", 'Invalid value: "3": must be an'),
    (
        POD_FIELD + "containers[0].resources.requests",
        'Invalid value: "2": must be less than or equal to cpu limit of 1',
    ),
    (POD_FIELD + "affinity.nodeAffinity.x", "Required value: must have at least one"),
    (POD_FIELD + "hostNetwork", "Forbidden: not here"),
    ("spec.template.labels", 'Invalid value: "a c": a valid label must be'),
    ("spec.template.annotations", "Too long: may not be more than 262144 bytes"),
    ("spec.suspend", "Invalid value: true: no"),
    (
        POD_FIELD + "containers[0].volumeMounts.subPath",
        'Invalid value: "../y": must not contain',
    ),
    (POD_FIELD + "containers[0].volumeMounts.mountPath", "Required value"),
    (POD_FIELD + "containers[0].resources.limits[bar]", 'Invalid value: "bar": must be a standard'),
    (POD_FIELD + "containers[0].resources.limits[foo]", 'Invalid value: "2": must be an integer'),
    (POD_FIELD + "containers[0].resources.limits", 'Invalid value: "7": must not be'),
    (f"spec.template.annotations[{APPARMOR}other]", 'Invalid value: "other": container not found'),
    (f"spec.template.annotations[{APPARMOR}nope]", 'Invalid value: "ope": container not found'),
    # No field at all.
    (".", "Required value"),
    ("[", 'Invalid value: "a b": no'),
    ("[]", "is wrong"),
]


def invalid(field: str, message: str) -> ApiError:
    """The API server's own answer to an object that does not hold together."""
    causes = [{"field": field, "message": message}]
    body = {"message": f"{field}: {message}", "details": {"causes": causes}}
    return ApiError("POST /jobs", 422, body)


@pytest.mark.parametrize(("field", "message"), OURS)
def test_what_the_manifest_says_is_the_user_s_mistake(field: str, message: str) -> None:
    found = refusal("Job a-sft-1", invalid(field, message), sent=SENT)
    assert (found.reason, found.final) == (Reason.INVALID_SPEC, True)


@pytest.mark.parametrize(("field", "message"), OF_OTHERS)
def test_what_is_written_on_the_way_is_waited_for(field: str, message: str) -> None:
    found = refusal("Job a-sft-1", invalid(field, message), sent=SENT)
    assert (found.reason, found.final) == (Reason.INVALID_MUTATION, False)
    assert found.reason in REFUSALS
    assert "correct the mutating webhook or policy that did" in found.message
