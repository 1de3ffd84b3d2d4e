"""Which namespaces a release looks after, and two releases on one cluster, as the page has it."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from subprocess import CalledProcessError

import pytest
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from releases import CHART, Release, set_options

VALUES = ("image.repository=registry.test/operator", "trainerImage=registry.test/trainer:1")
NEW = ("--create-namespace", *set_options(*VALUES))


def documented(named: str) -> list[str]:
    """The options after the namespace in the one command of docs/install.md that names this."""
    page = (CHART.parents[1] / "docs" / "install.md").read_text().replace("\\\n", "")
    (line,) = (each for each in page.splitlines() if each.startswith("$ helm ") and named in each)
    _, _, options = line.partition(" --namespace ")
    return shlex.split(options)[1:]


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def releases(
    request: pytest.FixtureRequest, control_plane: Access, own_control_plane: ControlPlane
) -> Iterator[tuple[Release, Release]]:
    """Two that are not installed yet; not on a cluster where another one may live."""
    found = tuple(Release(int(request.param), control_plane) for _ in range(2))
    yield found[0], found[1]
    for each in found:
        with suppress(AssertionError, CalledProcessError):
            each.helm("uninstall")
        gone = ("--wait=false", "--ignore-not-found")
        control_plane.kubectl("delete", "namespace", each.namespace, *gone)


def install(release: Release, *options: str) -> None:
    """The CRD of the control plane is taken over."""
    release.helm("install", str(CHART), *NEW, "--take-ownership", *options)


def watched(release: Release) -> list[str]:
    """What the operator is told to look after."""
    container = "{.spec.template.spec.containers[0]"
    path = f'jsonpath={container}.env[?(@.name=="RLHF_OPERATOR_NAMESPACES")].value}}'
    found: list[str] = json.loads(release.get("deployment", release.deployment, "-o", path))
    return found


def roles(release: Release) -> set[str]:
    """Its roles but for that of the Lease and those of users, as `kind namespace`."""
    own = f"Role {release.namespace}/"
    found = {name.rsplit("/", 1)[0] for name in release.objects() if re.match(r"\w*Role ", name)}
    return found - {own.rstrip("/")}


def test_a_watched_namespace_must_exist(releases: tuple[Release, Release]) -> None:
    release, _ = releases
    scope = ("--set", "watch.namespaces={team-of-nobody}")
    done = release.try_helm("install", str(CHART), *NEW, "--take-ownership", *scope)
    assert done.returncode != 0
    assert 'namespaces "team-of-nobody" not found' in done.stderr


def test_from_a_list_back_to_all(releases: tuple[Release, Release], namespace: str) -> None:
    release, _ = releases
    none = ("--set", "rbac.aggregatedRoles=false")
    install(release, *none, "--set", f"watch.namespaces={{{namespace}}}")
    assert watched(release) == [namespace]
    assert roles(release) == {f"Role {namespace}"}
    release.helm("upgrade", str(CHART), *documented("watch.namespaces=[]"))
    assert watched(release) == []
    assert roles(release) == {"ClusterRole "}
    release.helm("upgrade", str(CHART), "--reset-then-reuse-values", "--set", "replicas=2")
    assert watched(release) == []


def test_an_empty_list_of_the_command_line_changes_nothing(
    releases: tuple[Release, Release], namespace: str
) -> None:
    """As a script has it whose variable is empty: the operator must not get the whole cluster."""
    release, _ = releases
    install(release, "--set", f"watch.namespaces={{{namespace}}}")
    before = release.objects()
    options = ("--reset-then-reuse-values", "--set", "watch.namespaces={}")
    done = release.try_helm("upgrade", str(CHART), *options)
    assert done.returncode != 0
    assert "--set-json watch.namespaces=[] on the command line" in done.stderr
    assert release.objects() == before


def test_a_second_release_leaves_the_crd_to_the_first(
    releases: tuple[Release, Release], control_plane: Access, namespace: str
) -> None:
    first, second = releases
    install(first, "--set", f"watch.namespaces={{{namespace}}}")
    options = [
        each.replace("$REGISTRY", "registry.test").replace("{team-b}", f"{{{second.namespace}}}")
        for each in documented("rlhf-team-b")
    ]
    with_crd = [each.replace("crds.enabled=false", "crds.enabled=true") for each in options]
    done = second.try_helm("install", str(CHART), *with_crd)
    assert done.returncode != 0
    assert 'CustomResourceDefinition "rlhfjobs.rlhf.dev"' in done.stderr
    assert "invalid ownership metadata" in done.stderr
    assert second.objects() == {}
    second.helm("install", str(CHART), *options)
    assert watched(second) == [second.namespace]
    made = {name.split(" ", 1)[0] for name in second.objects()}
    assert "Role" in made
    assert not {kind for kind in made if kind.startswith("Cluster") or kind.startswith("Custom")}
    second.helm("uninstall")
    assert "rlhfjobs.rlhf.dev" in control_plane.kubectl("get", "crd", "-o", "name").stdout
    assert watched(first) == [namespace]
