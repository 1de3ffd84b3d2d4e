"""A validating webhook on this machine, for tests that need the API server to refuse or to wait."""

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from kubernetes import client

Raw = dict[str, Any]
Verdict = Callable[[Raw], str | None]


class Webhook:
    """Asked by the API server about every object of a kind that is made in a namespace.

    Attributes:
        asked: names of the objects, or what their names begin with, one for each question.
        name: of the webhook, which refusals tell.
    """

    def __init__(self, access: Access, own: ControlPlane, namespace: str, plural: str) -> None:
        self._api = client.AdmissionregistrationV1Api(access.api)
        self._namespace, self._plural = namespace, plural
        self._authority = own.authority
        self.asked: list[str] = []
        self.name = f"{plural}.{namespace}.test"

    def answer(self, verdict: Verdict, seconds: float = 0.0) -> Self:
        """Refuse with the text that `verdict` gives for an object, after so many seconds."""
        certificate, key = self._authority.issue("webhook", "webhook", hosts=("127.0.0.1",))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(verdict, seconds))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._api.create_validating_webhook_configuration(self._configuration())
        return self

    def close(self) -> None:
        """Take the webhook back."""
        self._api.delete_validating_webhook_configuration(self.name)
        self._server.shutdown()
        self._server.server_close()

    def _configuration(self) -> Raw:
        bundle = base64.b64encode(self._authority.certificate.read_bytes()).decode()
        rule = {
            "apiGroups": ["*"],
            "apiVersions": ["*"],
            "operations": ["CREATE"],
            "resources": [self._plural],
        }
        hook = {
            "name": self.name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
            "clientConfig": {
                "url": f"https://127.0.0.1:{self._server.server_address[1]}/",
                "caBundle": bundle,
            },
        }
        return {"metadata": {"name": self.name}, "webhooks": [hook]}

    def _handler(self, verdict: Verdict, seconds: float) -> type[BaseHTTPRequestHandler]:
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = body["request"]
                metadata = request["object"]["metadata"]
                asked.append(metadata.get("name") or metadata.get("generateName", ""))
                time.sleep(seconds)
                refused = verdict(request["object"])
                answer: Raw = {"uid": request["uid"], "allowed": refused is None}
                if refused is not None:
                    answer["status"] = {"message": refused}
                text = json.dumps(body | {"response": answer}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(ssl.SSLEOFError):  # Whoever asked has given up.
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
