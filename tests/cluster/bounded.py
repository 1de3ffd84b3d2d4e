"""The Kubernetes client of the tests: no request of it waits for ever.

The library has no such setting: each call would have to bring its own bound.
"""

from pathlib import Path
from typing import Any

from kubernetes import client, config

REQUEST_SECONDS = 30.0
"""For one try; the library makes up to four of what may be repeated."""


class BoundedClient(client.ApiClient):
    """Ends a request that is not answered within REQUEST_SECONDS, unless the call names a bound.

    A watch, whose answer has no end, has to name one.
    """

    def call_api(self, *arguments: Any, **options: Any) -> Any:
        """Send one request."""
        bound = options.get("_request_timeout") or REQUEST_SECONDS
        return super().call_api(*arguments, **options | {"_request_timeout": bound})


def client_by(kubeconfig: Path) -> BoundedClient:
    """A client of the user in a kubeconfig."""
    configuration = client.Configuration()
    config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    return BoundedClient(configuration)
