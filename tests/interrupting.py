"""A TCP proxy before the API server that hangs, refuses or cuts connections on demand."""

import contextlib
import selectors
import socket
import threading
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import yaml

_CHUNK = 65536


class Proxy:
    """Passes connections on to the API server of a kubeconfig, until told otherwise.

    Attributes:
        kubeconfig: the same user, by way of the proxy.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster = document["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        self._target = (server.hostname or "", server.port or 443)
        self._flows = threading.Event()
        self._flows.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address = self._listener.getsockname()
        cluster["server"] = f"https://127.0.0.1:{self._address[1]}"
        self.kubeconfig = folder / f"proxy-{self._address[1]}.kubeconfig"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(yaml.safe_dump(document))
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self.flow()

    def hang(self) -> None:
        """Connections stay, and new ones are accepted, but no byte passes."""
        self._flows.clear()

    def flow(self) -> None:
        """End `hang`."""
        self._flows.set()

    def refuse(self) -> None:
        """Cut all connections and refuse new ones."""
        # A listener is woken by shutdown, not by close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):  # The other side was faster.
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def accept(self) -> None:
        """End `refuse`."""
        self._listener = socket.create_server(self._address)
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # Closed by `refuse`.
                return
            pair = (near, socket.create_connection(self._target))
            self._pairs.append(pair)
            threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            for end in other:
                ready.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    source = near if key.fileobj is near else far
                    data = source.recv(_CHUNK)
                    self._flows.wait()
                    if not data:
                        return
                    other[source].sendall(data)
