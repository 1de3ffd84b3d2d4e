"""Raw JSON requests to the API server, over one session; for whoever plays users and kubelet.

Never used by the operator that is measured.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from rlhf_api.errors import RLHFError
from rlhf_api.names import API_VERSION, KIND, PLURAL

Raw = dict[str, Any]

REQUEST_SECONDS = 30
CONNECTIONS = 50


class RequestError(RLHFError):
    """The API server refused a request of the benchmark."""


@dataclass(frozen=True)
class Api:
    """A session as the user of a kubeconfig."""

    session: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: Path) -> AsyncIterator["Api"]:
        """A session by a kubeconfig that names files of a certificate and its key."""
        document = yaml.safe_load(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        async with aiohttp.ClientSession(
            cluster["server"],
            connector=aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        ) as session:
            yield cls(session)

    async def request(
        self,
        method: str,
        path: str,
        body: Raw | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Raw:
        """One request.

        Raises:
            RequestError: refused; with the server's own sentence.
            aiohttp.ClientError: not answered.
        """
        headers = {"Content-Type": content_type}
        async with self.session.request(
            method, path, json=body, params=query, headers=headers
        ) as response:
            answer: Raw = await response.json(content_type=None)
        if response.status >= 300:
            raise RequestError(f"{method} {path}: {response.status}: {answer.get('message')}")
        return answer

    async def items(self, path: str, selector: str = "") -> list[Raw]:
        """A collection as the API server's cache has it: what is measured shall not wait for us."""
        query = {"resourceVersion": "0", "labelSelector": selector}
        found: list[Raw] = (await self.request("GET", path, query=query))["items"]
        return found

    async def create_job(self, namespace: str, name: str, stages: Raw) -> Raw:
        """Make an RLHFJob."""
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"storage": {"uri": "pvc://runs/runs"}, "stages": stages},
        }
        return await self.request("POST", jobs_path(namespace), document)

    async def patch_pod_status(self, pod: Raw, status: Raw) -> None:
        """Say as its kubelet where a pod stands."""
        metadata = pod["metadata"]
        await self.request(
            "PATCH",
            f"{core_path(metadata['namespace'], 'pods', metadata['name'])}/status",
            {"status": status},
            content_type="application/strategic-merge-patch+json",
        )


def core_path(namespace: str, plural: str, name: str = "") -> str:
    """Path of an object, or a collection, of the core group."""
    return "/".join(filter(None, ("/api/v1/namespaces", namespace, plural, name)))


def jobs_path(namespace: str, name: str = "") -> str:
    """Path of an RLHFJob, or of those of a namespace."""
    return "/".join(filter(None, (f"/apis/{API_VERSION}/namespaces", namespace, PLURAL, name)))
