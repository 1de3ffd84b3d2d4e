"""Which tests are left out, or fail, where no sandbox is, and on a cluster that exists."""

from pathlib import Path

import pytest
from cluster.kube_fixtures import EXISTING, Access, given_images, require_own, require_sandbox
from cluster.sandbox import INSIDE
from kubernetes.client import ApiClient

IMAGES = ("RLHF_TEST_OPERATOR_IMAGE", "RLHF_TEST_TRAINER_IMAGE")


@pytest.mark.parametrize(
    ("variables", "outcome", "words"),
    [
        ({}, pytest.skip.Exception, "make end-to-end"),
        ({"CI": "true"}, pytest.fail.Exception, "make end-to-end"),
        ({EXISTING: "a.yaml"}, pytest.skip.Exception, EXISTING),
        ({"CI": "true", EXISTING: "a.yaml"}, pytest.skip.Exception, EXISTING),
    ],
)
def test_nodes_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    outcome: type[BaseException],
    words: str,
) -> None:
    for name in ("CI", EXISTING, INSIDE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(outcome, match=words):
        require_sandbox()


def test_who_plays_the_kubelet_is_left_out_on_a_cluster_that_exists() -> None:
    with pytest.raises(pytest.skip.Exception, match=f"{EXISTING} names a cluster with kubelets"):
        require_own(Access(Path("a.yaml"), ApiClient()))


@pytest.mark.parametrize("given", [(), IMAGES[:1], IMAGES[1:]])
def test_an_image_that_an_existing_cluster_is_not_told_is_named(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    for name in IMAGES:
        monkeypatch.delenv(name, raising=False)
    for name in given:
        monkeypatch.setenv(name, "registry.test/image:1")
    missing = " and ".join(name for name in IMAGES if name not in given)
    remedy = f"{missing} nothing to run there; set {' and '.join(IMAGES)} to images"
    with pytest.raises(pytest.fail.Exception, match=remedy):
        given_images()


def test_the_images_of_an_existing_cluster_are_those_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = ["registry.test/operator:1", "registry.test/trainer:1"]
    for name, image in zip(IMAGES, images, strict=True):
        monkeypatch.setenv(name, image)
    assert given_images() == images
