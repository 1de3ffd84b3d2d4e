"""From a packaged earlier chart to this one and back, on an API server that has no CRD before."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import leaves
from cluster.bounded import client_by
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import CRD, Access
from kubernetes.client.exceptions import NotFoundException
from operating import Jobs
from releases import CHART, EARLIER, Release, everything, set_options, values_of
from waiting import eventually, is_still

pytestmark = pytest.mark.timeout(600)

TEAM = "team"
REGISTRY = "registry.example.com/rlhf"
VALUES = ("image.repository=" + REGISTRY + "/operator", f"trainerImage={REGISTRY}/trainer:0.1.0")
NEWER = set_options(
    "image.tag=0.2.0",
    f"trainerImage={REGISTRY}/trainer:0.2.0",
    # Each with an object that the earlier chart has not.
    *("replicas=2", "networkPolicy.enabled=true"),
)
CRD_NAME = "rlhfjobs.rlhf.dev"
# The API server makes the second of the first.
KEPT = {f"CustomResourceDefinition /{CRD_NAME}", "APIService /v1alpha1.rlhf.dev"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A control plane of its own: the CRD comes and goes with the chart alone."""
    with ControlPlane(tmp_path_factory.mktemp("bare")) as running:
        api = client_by(running.kubeconfig)
        access = Access(running.kubeconfig, api, running)
        access.kubectl("create", "namespace", TEAM)
        # What Kubernetes makes at its start must not be taken for what a release left.
        eventually(lambda: is_still(lambda: everything(access), 5), what="the cluster is at rest")
        yield access
        api.close()


@pytest.fixture(params=[(3, 3), (4, 4), (3, 4)], ids=["helm3", "helm4", "helm3-then-4"])
def majors(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Of the Helm that installs, and of the one that does all the rest."""
    first, then = request.param
    return int(first), int(then)


@pytest.fixture
def jobs(bare: Access) -> Iterator[Jobs]:
    """RLHFJobs of a team; the CRD, and with it all of them, is gone again after the test."""
    yield Jobs(bare, TEAM)
    bare.kubectl("delete", "crd", CRD_NAME, "--ignore-not-found", "--timeout=60s")


@pytest.fixture
def release(bare: Access, jobs: Jobs, majors: tuple[int, int]) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace that is there."""
    found = Release(majors[0], bare)
    found.create_namespace()
    yield found
    bare.kubectl("delete", "namespace", found.namespace, "--timeout=120s")


def install(release: Release, major: int, *options: str) -> None:
    """Install the earlier chart; from now on the release is handled with Helm `major`."""
    release.helm("install", str(EARLIER), *set_options(*VALUES), *options)
    release.major = major


def created(jobs: Jobs, name: str) -> dict[str, Any]:
    """A job that is made as soon as the API server serves the CRD."""
    make = partial(jobs.create, name, suspend=True)
    job: dict[str, Any] = eventually(make, not_yet=NotFoundException, what="RLHFJobs are served")
    return job


def crd(access: Access) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(access.kubectl("get", "crd", CRD_NAME, "-o", "json").stdout)
    return found


def crd_of_this_chart(access: Access) -> dict[str, Any]:
    """As the API server completes it."""
    options = ("--server-side", "--force-conflicts", "--dry-run=server", "-o", "json")
    found: dict[str, Any] = json.loads(access.kubectl("apply", *options, "-f", str(CRD)).stdout)
    return found


def charts_of(release: Release) -> set[str]:
    """The charts that the objects of a release are from, by their labels; the CRD has none."""
    made = (each for each in release.objects().values() if each["metadata"]["name"] != CRD_NAME)
    return {each["metadata"]["labels"]["helm.sh/chart"] for each in made}


def chart_version() -> str:
    name = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return f"{name['name']}-{name['version']}"


def only_these_are_left(access: Access, expected: set[str]) -> None:
    """Wait until the garbage collector has done its part."""
    eventually(
        lambda: everything(access) == expected,
        pause=1,
        what=lambda: f"left {sorted(everything(access) ^ expected)}",
    )


def test_upgraded_rolled_back_and_removed(
    bare: Access, jobs: Jobs, release: Release, majors: tuple[int, int]
) -> None:
    before = everything(bare)
    install(release, majors[1])
    job = created(jobs, "survivor")
    earlier, uid = release.objects(), crd(bare)["metadata"]["uid"]

    release.helm("upgrade", str(CHART), "--reset-then-reuse-values", *NEWER)
    assert charts_of(release) == {chart_version()}
    deployment = release.objects()[f"Deployment {release.namespace}/{release.deployment}"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{REGISTRY}/operator:0.2.0"
    assert crd(bare)["metadata"]["uid"] == uid
    assert crd(bare)["spec"] == crd_of_this_chart(bare)["spec"]
    assert jobs.get("survivor") == job

    release.helm("rollback")
    assert release.objects() == earlier
    assert crd(bare)["metadata"]["uid"] == uid
    assert jobs.get("survivor") == job

    kept = before | KEPT | {f"RLHFJob {TEAM}/survivor"}
    release.helm("uninstall")
    only_these_are_left(bare, kept)
    release.helm("install", str(CHART), *set_options(*VALUES))
    release.helm("uninstall")
    only_these_are_left(bare, kept)
    assert jobs.get("survivor") == job


def test_monitors_need_their_api(release: Release, majors: tuple[int, int]) -> None:
    """This control plane never has it; others may have had the CRDs from another test."""
    release.major = majors[1]
    options = set_options(*VALUES, "metrics.podMonitor.enabled=true")
    done = release.try_helm("install", str(CHART), *options)
    assert done.returncode != 0
    assert "the cluster does not serve monitoring.coreos.com/v1; install the CRDs" in done.stderr
    assert release.objects() == {}


def test_no_default_of_the_earlier_chart_has_changed() -> None:
    """As docs/install.md says of an upgrade."""
    now = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for path, value in leaves(yaml.safe_load(values_of(EARLIER))):
        assert now[path] == value, path


def test_every_value_of_the_earlier_chart_is_still_one(
    bare: Access, release: Release, majors: tuple[int, int], tmp_path: Path
) -> None:
    """Who gave the whole of its values.yaml upgrades as anybody else."""
    values = tmp_path / "values.yaml"
    values.write_text(values_of(EARLIER))
    install(release, majors[1], "--values", str(values))
    release.helm("upgrade", str(CHART), "--reset-then-reuse-values", *NEWER)
    assert charts_of(release) == {chart_version()}
    release.helm("uninstall")


def test_reuse_values_names_what_it_leaves_out_and_changes_nothing(
    release: Release, majors: tuple[int, int]
) -> None:
    """Helm's option drops the defaults of the new chart; docs/install.md names the one to use."""
    install(release, majors[1])
    earlier = release.objects()
    done = release.try_helm("upgrade", str(CHART), "--reuse-values", *NEWER)
    assert done.returncode != 0
    for missing in ("config", "metrics", "aggregatedRoles"):
        assert missing in done.stderr
    assert release.objects() == earlier
    revisions = json.loads(release.helm("history", "-o", "json"))
    assert [each["status"] for each in revisions] == ["deployed"]
    release.helm("upgrade", str(CHART), "--reset-then-reuse-values", *NEWER)
    release.helm("uninstall")


def test_a_crd_that_is_not_kept_goes_with_the_release(
    bare: Access, jobs: Jobs, release: Release, majors: tuple[int, int]
) -> None:
    before = everything(bare)
    install(release, majors[1])
    created(jobs, "goner")
    release.helm("upgrade", str(CHART), "--reset-then-reuse-values", "--set", "crds.keep=false")
    release.helm("uninstall")
    only_these_are_left(bare, before)
