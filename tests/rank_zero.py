"""The page of rank 0 that tells how far an attempt is, for pods that a test plays."""

import errno
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from rlhf_api.metrics import METRIC_PREFIX, Metric
from rlhf_api.names import Port


class RankZero:
    """Answers on an address of its own of 127.77.0.0/16, on the port that pods serve.

    Args:
        step: how far it is, in twice as many steps.
        last_checkpoint_step: of its newest checkpoint; none when None.
        more: further lines of the page.

    Attributes:
        address: to be given to the pod.
    """

    def __init__(self, step: int, last_checkpoint_step: int | None = None, more: str = "") -> None:
        values = {Metric.STEP: step, Metric.TOTAL_STEPS: 2 * step}
        if last_checkpoint_step is not None:
            values[Metric.LAST_CHECKPOINT_STEP] = last_checkpoint_step
        lines = (f"{METRIC_PREFIX}{name} {value}\n" for name, value in values.items())
        page = ("".join(lines) + more).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = _serve(Handler)
        self.address = str(self._server.server_address[0])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """On an address that nobody has: other tests of this machine take some, too."""
    address = f"127.77.{random.randrange(256)}.{random.randrange(1, 255)}"
    try:
        return ThreadingHTTPServer((address, Port.METRICS), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return _serve(handler)
