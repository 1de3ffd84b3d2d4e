"""The CRD as the API server takes it: what it explains, refuses and lets change."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from change_cases import TRANSITIONS, WRITTEN
from cluster.kube_fixtures import Access
from example_files import MANIFESTS
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from rule_cases import (
    CASES,
    KEYS,
    NAMES,
    QUEUES,
    STAGE,
    batches,
    graphs,
    keyed,
)
from waiting import eventually

from rlhf_api.contract import Contract
from rlhf_api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from rlhf_api.schema import structural
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_api.v1alpha1.pod import QualifiedKeys
from rlhf_api.v1alpha1.spec import RLHFJobSpec

TEST_GROUP = "rules.rlhf.dev"

Raw = dict[str, Any]


def job(**spec: Any) -> Raw:
    given = {key: value for key, value in ({"stages": {"sft": STAGE}} | spec).items() if value}
    metadata = {"name": "job"}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": given}


def fields(schema: Raw, path: str) -> Iterator[tuple[str, Raw]]:
    """Every field of an OpenAPI schema with its path."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner
        yield from fields(inner, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


def test_every_field_is_explained_by_a_sentence(control_plane: Access) -> None:
    # Published some seconds after the CRD is established.
    path = f"/openapi/v3/apis/{GROUP}/{VERSION}"
    text = eventually(lambda: control_plane.kubectl("get", "--raw", path, check=False).stdout)
    schemas = json.loads(text)["components"]["schemas"]
    (whole,) = (found for name, found in schemas.items() if name.endswith(f".{KIND}"))
    own = {key: whole["properties"][key] for key in ("spec", "status")}
    found = dict(fields({"properties": own}, "rlhfjob"))
    assert len(found) > 200
    bare = [path for path, inner in found.items() if not inner.get("description", "").strip()]
    assert bare == []
    told = control_plane.kubectl("explain", "rlhfjob.spec.stages.ppo.klCoef").stdout
    assert found["rlhfjob.spec.stages.ppo.klCoef"]["description"] in " ".join(told.split())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_examples_are_applied_by_a_client(
    control_plane: Access, namespace: str, path: Path
) -> None:
    """As people apply: the client keeps the whole object in an annotation."""
    for _ in range(2):
        control_plane.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learningrate": 1e-5}, 'unknown field "spec.stages.sft.learningrate"'),
        ({"batchSize": "many"}, "spec.stages.sft.batchSize"),
        ({"batchSize": 0}, "spec.stages.sft.batchSize"),
        ({"precision": "FP8"}, "spec.stages.sft.precision"),
        ({"model": {}}, "spec.stages.sft.model"),
    ],
)
def test_a_bad_spec_is_refused_with_the_field(
    control_plane: Access, namespace: str, change: Raw, said: str
) -> None:
    text = json.dumps(job(stages={"sft": STAGE | change}))
    arguments = ("apply", "--validate=strict", "-n", namespace, "-f", "-")
    done = control_plane.kubectl(*arguments, text=text, check=False)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(("field", "old", "new", "allowed"), TRANSITIONS)
def test_what_may_change(
    control_plane: Access, namespace: str, field: str, old: Any, new: Any, allowed: bool
) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    made = custom.create_namespaced_custom_object(*where, job(**{field: old}))
    version = {"resourceVersion": made["metadata"]["resourceVersion"]}
    changed = job(**{field: new})
    changed["metadata"] |= version
    if allowed:
        custom.replace_namespaced_custom_object(*where, "job", changed)
        return
    with pytest.raises(ApiException) as caught:
        custom.replace_namespaced_custom_object(*where, "job", changed)
    assert caught.value.status == 422
    sentence = f"{field} cannot be changed; delete the job and create it anew"
    assert sentence in json.loads(str(caught.value.body))["message"]


@pytest.mark.parametrize(("old", "new", "field"), WRITTEN)
def test_a_quantity_that_is_written_differently_is_named(
    control_plane: Access, namespace: str, old: Raw, new: Raw, field: str
) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    made = custom.create_namespaced_custom_object(*where, job(**old))
    custom.replace_namespaced_custom_object(*where, "job", made)
    changed = job(**new)
    changed["metadata"]["resourceVersion"] = custom.get_namespaced_custom_object(*where, "job")[
        "metadata"
    ]["resourceVersion"]
    with pytest.raises(ApiException) as caught:
        custom.replace_namespaced_custom_object(*where, "job", changed)
    message = json.loads(str(caught.value.body))["message"]
    assert "cannot be changed; delete the job and create it anew" in message
    assert ("quantities are compared as written" in message) == bool(field)
    assert field in message


@pytest.mark.parametrize(("name", "allowed"), [each for each in QUEUES if each[0]])
def test_names_of_queues(control_plane: Access, namespace: str, name: str, allowed: bool) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    if allowed:
        custom.create_namespaced_custom_object(*where, job(queueName=name), dry_run="All")
        return
    with pytest.raises(ApiException) as caught:
        custom.create_namespaced_custom_object(*where, job(queueName=name), dry_run="All")
    assert "spec.queueName" in json.loads(str(caught.value.body))["message"]


@pytest.mark.parametrize(("key", "allowed"), KEYS)
def test_keys_of_labels(control_plane: Access, namespace: str, key: str, allowed: bool) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    for path, spec in keyed(key):
        if allowed:
            custom.create_namespaced_custom_object(*where, job(**spec), dry_run="All")
            continue
        with pytest.raises(ApiException) as caught:
            custom.create_namespaced_custom_object(*where, job(**spec), dry_run="All")
        message = json.loads(str(caught.value.body))["message"]
        assert f"{path}: Invalid value: " in message
        assert QualifiedKeys.message in message


@pytest.fixture(scope="module")
def rule_kinds(control_plane: Access) -> Iterator[dict[type[Contract], str]]:
    """A resource for each model with rules, whose spec is that model."""
    api = client.ApiextensionsV1Api(control_plane.api)
    plurals = {model: f"{model.__name__.lower()}s" for model in CASES}
    for model, plural in plurals.items():
        schema = {"type": "object", "properties": {"spec": structural(model)}}
        version = {"name": "v1", "served": True, "storage": True}
        names = {"plural": plural, "kind": model.__name__}
        spec = {"group": TEST_GROUP, "scope": "Cluster", "names": names}
        spec["versions"] = [version | {"schema": {"openAPIV3Schema": schema}}]
        metadata = {"name": f"{plural}.{TEST_GROUP}"}
        api.create_custom_resource_definition({"metadata": metadata, "spec": spec})
    custom = client.CustomObjectsApi(control_plane.api)
    for plural in plurals.values():
        eventually(
            partial(custom.list_cluster_custom_object, TEST_GROUP, "v1", plural),
            what=f"{plural} are served",
            not_yet=ApiException,
        )
    yield plurals
    for plural in plurals.values():
        api.delete_custom_resource_definition(f"{plural}.{TEST_GROUP}")


@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_every_rule_from_both_sides(
    control_plane: Access, rule_kinds: dict[type[Contract], str], model: type[Contract]
) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    for document, broken in CASES[model]:
        body = {
            "apiVersion": f"{TEST_GROUP}/v1",
            "kind": model.__name__,
            "metadata": {"name": "case"},
            "spec": document,
        }
        where = (TEST_GROUP, "v1", rule_kinds[model])
        if not broken:
            custom.create_cluster_custom_object(*where, body, dry_run="All")
            continue
        with pytest.raises(ApiException) as caught:
            custom.create_cluster_custom_object(*where, body, dry_run="All")
        message = json.loads(str(caught.value.body))["message"]
        for number in broken:
            assert model.RULES[number].message in message, document


def test_every_rule_over_several_stages_from_both_sides(
    control_plane: Access, namespace: str
) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    hit: set[str] = set()
    for spec, said in [*graphs(), *batches()]:
        body = job(**spec)
        if not said:
            custom.create_namespaced_custom_object(*where, body, dry_run="All")
            continue
        with pytest.raises(ApiException) as caught:
            custom.create_namespaced_custom_object(*where, body, dry_run="All")
        message = json.loads(str(caught.value.body))["message"]
        assert said in message, (spec, message)
        hit |= {rule.message for rule in RLHFJobSpec.API_RULES if rule.message in message}
    rules = {rule.message for rule in RLHFJobSpec.API_RULES if "oldSelf" not in rule.cel}
    assert rules - hit == set()


@pytest.mark.parametrize(("name", "allowed"), NAMES)
def test_names_of_jobs(control_plane: Access, namespace: str, name: str, allowed: bool) -> None:
    custom = client.CustomObjectsApi(control_plane.api)
    where = (GROUP, VERSION, namespace, PLURAL)
    body = job() | {"metadata": {"name": name}}
    if allowed:
        custom.create_namespaced_custom_object(*where, body, dry_run="All")
        return
    with pytest.raises(ApiException) as caught:
        custom.create_namespaced_custom_object(*where, body, dry_run="All")
    message = json.loads(str(caught.value.body))["message"]
    assert any(rule.message in message for rule in RLHFJob.API_RULES)
