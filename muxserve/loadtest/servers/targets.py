"""The servers of a scenario: started here one after the other, or looked for at a URL.

Out comes something that answers. A server that does not is an error with a sentence that says what
was tried and what to do.
"""

import http.client
import json
import math
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from muxserve.errors import InvalidInput
from muxserve.loadtest.scenario.scenario import PeerName, Scenario, ServerSpec
from muxserve.loadtest.servers.http import request
from muxserve.loadtest.servers.muxserve import RunningServer, running_muxserve
from muxserve.loadtest.servers.process import HOST, ProcessFailed, free_port, running_process

_BRIDGE_START_S, _BRIDGE_STOP_S = 60.0, 10.0
#: Environments of peers, made once.
_ENVIRONMENTS = Path(".cache/peers")


class TargetFailed(RuntimeError):
    """A server did not start, or does not answer; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """A server that answers.

    Attributes:
        url: as the load generator is told.
        cpu_seconds: of its processes until now; NaN where they are not ours to see.
        stats: what ``/stats`` answers; None where it has none.
        ask_url: http://host:port of ``/predict``, for the answers of N=1; None where it has none.
        path: of the route, where it is not the kind's own.
        body: makes a request's body of a text, for peers.
    """

    url: str
    cpu_seconds: Callable[[], float]
    stats: Callable[[], dict[str, Any]] | None = None
    ask_url: str | None = None
    path: str | None = None
    body: Callable[[str], bytes] | None = None


@contextmanager
def open_target(spec: ServerSpec, scenario: Scenario) -> Iterator[Target]:
    """A server until the block ends.

    Raises:
        TargetFailed: it does not answer.
    """
    if spec.url is not None:
        opened = _at_url(spec.url, scenario)
    elif spec.peer is not None:
        opened = _peer(spec.peer, scenario)
    else:
        opened = _started(spec, scenario)
    try:
        with opened as target:
            yield target
    except ProcessFailed as error:
        raise TargetFailed(str(error) if spec.peer else f"{spec.name}: {error}") from None


@contextmanager
def _started(spec: ServerSpec, scenario: Scenario) -> Iterator[Target]:
    from muxserve.engine.config import available_cores

    settings = [*scenario.settings, *spec.settings]
    given = {one.partition("=")[0] for one in settings}
    if "replicas.num_cpus" not in given:
        settings.append(f"replicas.num_cpus={max(1, available_cores() // spec.replicas)}")
    if spec.replicas > 1:
        settings.append(f"replicas.num_replicas={spec.replicas}")
    if spec.num_instances is not None:
        settings.append(f"engine.num_instances={spec.num_instances}")
    grpc_port = free_port()
    if scenario.requests == "oip-grpc":
        settings.append(f"ingress.grpc_port={grpc_port}")
    with running_muxserve(scenario.family, settings, proxy=scenario.proxy) as running:
        if scenario.requests == "handle":
            with _bridge("auto") as port:
                yield _of_muxserve(running, f"{HOST}:{port}")
        elif scenario.requests == "oip-grpc":
            yield _of_muxserve(running, f"{HOST}:{grpc_port}")
        else:
            yield _of_muxserve(running, running.url)


def _of_muxserve(running: RunningServer, url: str) -> Target:
    return Target(url, running.cpu_seconds, running.stats, running.url)


@contextmanager
def _peer(name: PeerName, scenario: Scenario) -> Iterator[Target]:
    from muxserve.engine.config import available_cores
    from muxserve.loadtest.servers.peers import PEERS, environment, running
    from muxserve.loadtest.servers.plain_model import write_plain_model_like
    from muxserve.models.family import resolve
    from muxserve.models.precision import fastest_dtype

    peer = PEERS[name]
    with tempfile.TemporaryDirectory() as folder:
        model = write_plain_model_like(Path(folder) / "plain", resolve(scenario.family))
        with running(
            peer,
            environment(peer, _ENVIRONMENTS),
            model,
            port=free_port(),
            threads=available_cores(),
            dtype=str(fastest_dtype([])).removeprefix("torch."),
        ) as server:
            yield Target(server.url, server.cpu_seconds, path=peer.path, body=peer.body)


@contextmanager
def _at_url(url: str, scenario: Scenario) -> Iterator[Target]:
    if scenario.requests == "handle":
        with _bridge(url) as port:
            yield Target(f"{HOST}:{port}", lambda: math.nan)
        return
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if scenario.requests == "oip-grpc":
        _check_port(parts.hostname or "", parts.port or 8001, url)
        yield Target(f"{parts.hostname}:{parts.port or 8001}", lambda: math.nan)
        return
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    oip = scenario.requests == "oip-http"
    check_http(base, "/v2/health/ready" if oip else "/ready", scenario.headers)
    if oip:
        yield Target(base, lambda: math.nan)
        return

    def stats() -> dict[str, Any]:
        content: dict[str, Any] = json.loads(request(base, "/stats", headers=scenario.headers)[1])
        return content

    yield Target(base, lambda: math.nan, stats, base)


def check_http(base: str, path: str, headers: Mapping[str, str]) -> None:
    """Raise TargetFailed where no muxserve is ready there."""
    try:
        status, body = request(base, path, headers=headers)
    except socket.gaierror:
        raise TargetFailed(f"{base}: there is no such host; check the url") from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TargetFailed(
            f"nothing answers at {base} ({why}); start a server with `muxserve serve`, "
            "or check the url"
        ) from None
    if status == 404:
        raise TargetFailed(
            f"{base}{path} is unknown there (404): this is no muxserve, or the url's path is wrong"
        )
    if status != 200:
        said = body[:200].decode(errors="replace")
        raise TargetFailed(f"{base} is not ready ({path} answers {status}: {said})")


def _check_port(host: str, port: int, url: str) -> None:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError as error:
        raise TargetFailed(
            f"nothing answers at {url} ({error.strerror or error}); start one, or check the url"
        ) from None


@contextmanager
def _bridge(address: str) -> Iterator[int]:
    """A process that calls the application's handle; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "muxserve.loadtest.generator.handle_bridge"]

    def listens() -> bool:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            return False
        return True

    with running_process(
        [*command, "--port", str(port), "--address", address],
        listens,
        lambda _: f"no handle at Ray's {address}:",
        start_limit_s=_BRIDGE_START_S,
        stop_limit_s=_BRIDGE_STOP_S,
    ):
        yield port


def model_name(scenario: Scenario) -> str:
    """Of the Open Inference Protocol: as given, or the family's."""
    if scenario.model is not None:
        return scenario.model
    from muxserve.models.family import read_spec, resolve

    try:
        return read_spec(resolve(scenario.family)).name
    except (OSError, ValueError) as error:
        raise InvalidInput(f"family: {error}", field="family") from None
