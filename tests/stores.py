"""An S3 server of this process (moto's), which can go away and come back with what it holds."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "ichsearch-test"


class Store:
    """A bucket on a server of this process, reached through a door that can be closed."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._target = self._server.get_host_and_port()
        self._door = socket.create_server(("127.0.0.1", 0))
        self._is_open, self._through, self._passing = True, set[socket.socket](), threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()
        self.uri = f"s3://{BUCKET}"

    @property
    def endpoint(self) -> str:
        """What `AWS_ENDPOINT_URL` must be."""
        return "http://{}:{}".format(*self._door.getsockname())

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Nobody gets through, and who is through is thrown out."""
        with self._passing:
            self._is_open = False
            for connection in self._through:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self.let_in()

    def let_in(self) -> None:
        """Be back."""
        self._is_open = True

    def close(self) -> None:
        """End the server."""
        self._door.close()
        self._server.stop()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._door.accept()
                with self._passing:
                    if self._is_open:
                        self._let_through(visitor)
                    else:
                        visitor.close()

    def _let_through(self, visitor: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            visitor.close()
            return
        for one, other in ((visitor, server), (server, visitor)):
            self._through.add(one)
            threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(1 << 16):
                other.sendall(content)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._passing:
            self._through.discard(one)
        one.close()


@contextlib.contextmanager
def opened_store() -> Iterator[Store]:
    """A store that this process and those below it take for theirs."""
    store = Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs.S3FileSystem(endpoint_override=store.endpoint, allow_bucket_creation=True).create_dir(BUCKET)
        yield store
    store.close()


def new_folder(store: Store) -> str:
    """A folder of the bucket that nobody has used."""
    return f"{store.uri}/{os.urandom(4).hex()}"
