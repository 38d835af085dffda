"""Where the processes of a test find each other."""

import socket
from contextlib import contextmanager


@contextmanager
def kept():
    """An address for `jax.distributed`, which shares it; nobody else is given its port meanwhile."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{s.getsockname()[1]}"
