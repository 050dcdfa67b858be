"""An application in, a server on this machine out: what ``muxserve serve`` runs.

Starts a Ray of its own and stops it again; it never joins a cluster that runs already.
"""

import signal
import socket
from collections.abc import Callable
from threading import Event

import ray
from ray import serve

from muxserve.errors import InvalidInput


def serve_until_stopped(
    app: serve.Application, proxy: tuple[str, int] | None, on_ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: what ``build_app`` made.
        proxy: address and port where Ray Serve's proxy listens; None for no proxy.
        on_ready: called once requests would be answered.
    """
    stop = Event()
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        # After ray.init, which sets handlers of its own.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        if proxy is None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(http_options={"host": proxy[0], "port": proxy[1]})
        serve.run(app, name="default", route_prefix="/", blocking=False)
        if not stop.is_set():
            on_ready()
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def check_port_is_free(host: str, port: int) -> None:
    """Raise InvalidInput where nothing can listen on ``host:port``."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidInput(f"--host {host}: {error.strerror}", field="host") from None
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        # A port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise InvalidInput(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port",
                field="port",
            ) from None
