"""The servers of a scenario: started here one after the other, or looked for at a URL.

A server that does not answer is an error that says what was tried and what to do.
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
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from muxserve.errors import InvalidInput
from muxserve.extras import require
from muxserve.loadtest.scenario.scenario import PeerName, Scenario, ServerSpec
from muxserve.loadtest.servers.http_request import request
from muxserve.loadtest.servers.muxserve import running_muxserve
from muxserve.loadtest.servers.process import (
    HOST,
    ProcessFailed,
    cpu_seconds,
    free_port,
    running_process,
)

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
        model: its name in the Open Inference Protocol; "" where that is not spoken.
        body: makes a request's body of a text, for peers.
    """

    url: str
    cpu_seconds: Callable[[], float]
    stats: Callable[[], dict[str, Any]] | None = None
    ask_url: str | None = None
    path: str | None = None
    model: str = ""
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
    elif spec.triton is not None:
        opened = _triton(spec, scenario)
    else:
        opened = _muxserve(spec, scenario, _engine_settings(spec, scenario))
    try:
        with opened as target:
            yield target
    except ProcessFailed as error:
        raise TargetFailed(str(error) if spec.peer else f"{spec.name}: {error}") from None


def _engine_settings(spec: ServerSpec, scenario: Scenario) -> list[str]:
    """Of a muxserve with engines of its own."""
    from muxserve.engine.config import available_cores

    settings = [*scenario.settings, *spec.settings]
    given = {one.partition("=")[0] for one in settings}
    if "replicas.num_cpus" not in given:
        settings.append(f"replicas.num_cpus={max(1, available_cores() // spec.replicas)}")
    if spec.replicas > 1:
        settings.append(f"replicas.num_replicas={spec.replicas}")
    if spec.num_instances is not None:
        settings.append(f"engine.num_instances={spec.num_instances}")
    return settings


@contextmanager
def _muxserve(spec: ServerSpec, scenario: Scenario, settings: list[str]) -> Iterator[Target]:
    grpc_port = free_port()
    if scenario.requests == "oip-grpc":
        settings = [*settings, f"ingress.grpc_port={grpc_port}"]
    with running_muxserve(
        scenario.family, settings, proxy=scenario.proxy, environment=spec.environment
    ) as running:

        def target(url: str) -> Target:
            # Requests that ask for nothing have no labels to compare.
            ask_url = None if scenario.requests == "ready" else running.url
            model = _model_name(scenario)
            return Target(url, running.cpu_seconds, running.stats, ask_url, model=model)

        if scenario.requests == "handle":
            with _bridge("auto") as port:
                yield target(f"{HOST}:{port}")
        elif scenario.requests == "oip-grpc":
            yield target(f"{HOST}:{grpc_port}")
        else:
            yield target(running.url)


@contextmanager
def _triton(spec: ServerSpec, scenario: Scenario) -> Iterator[Target]:
    """Triton with the family exported, or muxserve before it."""
    require("a Triton server", "triton", "onnx")
    from muxserve.loadtest.servers.triton import TritonServer
    from muxserve.triton.repository import export
    from muxserve.triton.settings import ExportSettings

    n = spec.num_instances
    with tempfile.TemporaryDirectory(prefix="muxload") as folder:
        repository = Path(folder) / "models"
        settings = ExportSettings(text=True, num_instances=None if n is None else [n])
        models = export(scenario.family, repository, settings).models
        kind = "elastic" if n is None else "member"
        model = next((one.name for one in models if one.kind == kind), models[0].name)
        with TritonServer(repository) as triton:
            if spec.triton == "behind":
                own = ["backend=triton", f"triton.url={triton.grpc}", f"triton.model={model}"]
                with _muxserve(spec, scenario, [*spec.settings, *own]) as target:
                    yield target
                return
            url = triton.grpc if scenario.requests == "oip-grpc" else f"http://{triton.http}"

            def stats() -> dict[str, Any]:
                """Texts and executions of the model, as an engine of muxserve counts them."""
                content = request(f"http://{triton.http}", f"/v2/models/{model}/stats")[1]
                (counted,) = json.loads(content)["model_stats"]
                texts, runs = counted["inference_count"], counted["execution_count"]
                return {"engines": [{"slots": 0, "filled_slots": texts, "batches": runs}]}

            spent = partial(cpu_seconds, triton.pid)
            yield Target(url, spent, stats, model=f"{model}_text")


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
        address = f"{parts.hostname}:{parts.port or 8001}"
        _check_port(parts.hostname or "", parts.port or 8001, url)
        yield Target(address, lambda: math.nan, model=_model_name(scenario))
        return
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    oip = scenario.requests == "oip-http"
    check_http(base, "/v2/health/ready" if oip else "/ready", scenario.headers)
    if oip:
        yield Target(base, lambda: math.nan, model=_model_name(scenario))
        return

    def stats() -> dict[str, Any]:
        content: dict[str, Any] = json.loads(request(base, "/stats", headers=scenario.headers)[1])
        return content

    ask_url = None if scenario.requests == "ready" else base
    yield Target(base, lambda: math.nan, stats, ask_url)


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


def _model_name(scenario: Scenario) -> str:
    """Of the Open Inference Protocol: as given, or the family's; "" for other requests."""
    if not scenario.requests.startswith("oip"):
        return ""
    if scenario.model is not None:
        return scenario.model
    from muxserve.models.family import read_spec, resolve

    try:
        return read_spec(resolve(scenario.family)).name
    except (OSError, ValueError) as error:
        raise InvalidInput(f"family: {error}", field="family") from None
