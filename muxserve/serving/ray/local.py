"""An application in, a server on this machine out: what ``muxserve serve`` runs.

Starts a Ray of its own and stops it again; it never joins or touches a cluster that already runs.
Ray is called from a thread, and the main thread only waits for signals. So a signal is heard at any
moment, also while Ray starts or a replica is loaded.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType

import psutil
import ray
from ray import serve

from muxserve.errors import InvalidInput, MuxserveError
from muxserve.serving.ray.placement import Need, shortfall


class DoesNotStart(MuxserveError):
    """A replica of the application failed while it was started."""

    code = "does_not_start"


def serve_until_stopped(
    app: serve.Application,
    proxy: tuple[str, int] | None,
    wanted: Sequence[Need],
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends at once, with every process of this Ray.

    Args:
        app: what ``build_app`` made.
        proxy: address and port where Ray Serve's proxy listens; None for no proxy.
        wanted: what the application reserves.
        on_ready: called once requests would be answered.

    Raises:
        InvalidInput: this machine lacks what is wanted.
        DoesNotStart: a replica failed.
    """
    stop = threading.Event()
    ended = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _run(app, proxy, wanted, on_ready, stop)
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()
            stop.set()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            _end_now(128 + number)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        threading.Thread(target=run, name="muxserve-ray", daemon=True).start()
        # Ray's core sets a handler of its own when it connects, which would end this process and
        # leave Ray's behind: so ours is set again, and again until Ray is there.
        while not ended.wait(_TURN_S):
            for number in _SIGNALS:
                signal.signal(number, on_signal)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failures:
        raise failures[0]


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TURN_S = 0.02
#: Processes that Ray started have so long to end by themselves.
_LEAVE_S = 2.0
#: Before the names of our errors, in a traceback.
_OUR_ERRORS = "muxserve.errors."


def _run(
    app: serve.Application,
    proxy: tuple[str, int] | None,
    wanted: Sequence[Need],
    on_ready: Callable[[], None],
    stop: threading.Event,
) -> None:
    of_ray = logging.getLogger("ray._private.worker")
    of_ray.addFilter(_has_another_handler)
    try:
        # Where this fails, nothing of ours runs yet that would have to be shut down.
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            # Nobody else has to reach this Ray.
            _node_ip_address="127.0.0.1",
        )
    finally:
        of_ray.removeFilter(_has_another_handler)
    serving = False
    try:
        if stop.is_set():
            return
        missing = shortfall(wanted, [node["Resources"] for node in ray.nodes()])
        if missing is not None:
            raise InvalidInput(f"this machine cannot run the application: {missing}")
        serving = True
        if proxy is None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(http_options={"host": proxy[0], "port": proxy[1]})
        started = threading.Event()
        failed: list[BaseException] = []

        def deploy() -> None:
            try:
                serve.run(app, name="default", route_prefix="/", blocking=False)
            except BaseException as error:
                failed.append(error)
            finally:
                started.set()

        # Waits for the replicas; a signal must not wait for them.
        threading.Thread(target=deploy, name="muxserve-deploy", daemon=True).start()
        while not started.wait(0.05) and not stop.is_set():
            pass
        if stop.is_set():
            return
        if failed:
            raise DoesNotStart(_why(failed[0])) from failed[0]
        on_ready()
        stop.wait()
    finally:
        processes = psutil.Process().children(recursive=True)
        if serving:
            # Without our Ray, it would connect to any other on this machine.
            serve.shutdown()
        ray.shutdown()
        # A Ray actor that is killed leaves the HAProxy behind that it started.
        _, left = psutil.wait_procs(processes, timeout=_LEAVE_S)
        _kill(left)


def _why(error: BaseException) -> str:
    """Why the application does not start: Ray's own error names only the deployment."""
    applications = serve.status().applications.values()
    for deployment in (one for app in applications for one in app.deployments.values()):
        lines = deployment.message.strip().splitlines()
        if deployment.status == "DEPLOY_FAILED" and lines:
            return f"the application does not start: {lines[-1].removeprefix(_OUR_ERRORS)}"
    return f"the application does not start: {str(error).strip()}"


def _has_another_handler(record: logging.LogRecord) -> bool:
    """Drop Ray's warning that this thread cannot handle SIGTERM: our handler does."""
    return "SIGTERM handler is not set" not in record.msg


def _end_now(status: int) -> None:
    """End this process and all that it started."""
    _kill(psutil.Process().children(recursive=True))
    os._exit(status)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
