"""Jobs that this release does not understand, as a newer CRD lets them through."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from api_proxy import ApiProxy
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from operating import Jobs, Raw, eventually

from rlhf_operator.kube import ApiError, Kube
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.recorder import Recorder
from rlhf_operator.scraper import Scraper
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store

NAME = "newer"
REASON = ("Warning", "InvalidSpec")


@pytest.fixture
def proxy(jobs: Jobs, tmp_path: Path) -> Iterator[ApiProxy]:
    with ApiProxy(jobs.access.kubeconfig, tmp_path) as found:
        yield found


def with_an_unknown_field(raw: Raw) -> Raw:
    stages = {"sft": raw["spec"]["stages"]["sft"] | {"fromNewerRelease": 1}}
    return raw | {"spec": raw["spec"] | {"stages": stages}}


async def passes(jobs: Jobs, kubeconfig: Path, errors: int) -> None:
    """As many passes as fail, and two more, each on the job as the watch tells it."""
    configuration = Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with ApiClient(configuration) as api, aiohttp.ClientSession() as session:
        kube, store = Kube(api, 1000), Store()
        recorder = Recorder(kube)
        scraper = Scraper(session, lambda key: None)
        settings = Settings(trainer_image="registry.test/trainer:1")
        reconciler = Reconciler(kube, store, scraper, recorder, settings)
        telling = asyncio.create_task(recorder.run())
        for number in range(errors + 2):
            # Only a newer version enters the store.
            annotation = f"look={number}"
            jobs.access.kubectl(
                "annotate", "-n", jobs.namespace, "rlhf", NAME, "--overwrite", annotation
            )
            store.put(Kind.RLHFJOB, with_an_unknown_field(jobs.get(NAME)))
            if number < errors:
                with pytest.raises(ApiError):
                    await reconciler.reconcile((jobs.namespace, NAME))
            else:
                assert await reconciler.reconcile((jobs.namespace, NAME)) is None
        await asyncio.to_thread(eventually, lambda: REASON in jobs.events(NAME))
        telling.cancel()


@pytest.mark.parametrize("unanswered", [False, True])
def test_a_refusal_is_told_once_and_names_the_field(
    jobs: Jobs, proxy: ApiProxy, unanswered: bool
) -> None:
    jobs.create(NAME, suspend=True)
    if unanswered:
        proxy.lose(lambda call: call.method == "PATCH" and call.path.endswith("/status"))
    asyncio.run(passes(jobs, proxy.kubeconfig, errors=int(unanswered)))
    place = ("-n", jobs.namespace, NAME, "-o", "wide", "--no-headers")
    row = jobs.access.kubectl("get", "rlhf", *place).stdout.split()
    assert {"Pending", "InvalidSpec"} <= set(row), row
    (condition,) = jobs.get(NAME)["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Accepted", "False")
    assert "spec.stages.sft.fromNewerRelease" in condition["message"]
    assert "use the CRD of this operator's release" in condition["message"]
    assert jobs.events(NAME).count(REASON) == 1
