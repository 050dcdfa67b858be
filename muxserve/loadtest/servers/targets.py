"""The servers of a scenario: started here one after the other, or looked for at a URL.

Out comes something that answers. A server that does not is an error with a sentence that says what
was tried and what to do.
"""

import http.client
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from muxserve.errors import InvalidInput
from muxserve.loadtest.scenario.scenario import Scenario, ServerSpec
from muxserve.loadtest.servers.muxserve import HOST, RunningServer, free_port, running_muxserve
from muxserve.loadtest.servers.process import stop

_BRIDGE_START_S = 60.0
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
        yield from _at_url(spec.url, scenario)
    elif spec.peer is not None:
        yield from _peer(spec, scenario)
    else:
        yield from _started(spec, scenario)


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
    server = running_muxserve(scenario.family, settings, proxy=scenario.proxy)
    try:
        running = server.__enter__()
    except RuntimeError as error:
        raise TargetFailed(f"{spec.name}: {error}") from None
    try:
        url = f"http://{HOST}:{running.port}"
        if scenario.requests == "handle":
            with _bridge("auto") as port:
                yield _of_muxserve(running, f"{HOST}:{port}", url)
        elif scenario.requests == "oip-grpc":
            yield _of_muxserve(running, f"{HOST}:{grpc_port}", url)
        else:
            yield _of_muxserve(running, url, url)
    finally:
        server.__exit__(None, None, None)


def _of_muxserve(running: RunningServer, url: str, ask_url: str) -> Target:
    return Target(url, running.cpu_seconds, running.stats, ask_url)


def _peer(spec: ServerSpec, scenario: Scenario) -> Iterator[Target]:
    from muxserve.engine.config import available_cores
    from muxserve.loadtest.servers.peers import (
        PEERS,
        PeerFailed,
        environment,
        running,
        write_plain_model,
    )
    from muxserve.models.family import Family, resolve
    from muxserve.models.precision import fastest_dtype

    assert spec.peer is not None
    peer = PEERS[spec.peer]
    family = resolve(scenario.family)
    config = Family.load(family, [1]).models[1].config
    with tempfile.TemporaryDirectory() as folder:
        model = write_plain_model(
            Path(folder) / "plain",
            family / "tokenizer.json",
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            max_length=config.max_position_embeddings,
        )
        try:
            server = running(
                peer,
                environment(peer, _ENVIRONMENTS),
                model,
                port=free_port(),
                threads=available_cores(),
                dtype=str(fastest_dtype([])).removeprefix("torch."),
            )
            one = server.__enter__()
        except PeerFailed as error:
            raise TargetFailed(str(error)) from None
        try:
            yield Target(one.url, one.cpu_seconds, path=peer.path, body=peer.body)
        finally:
            server.__exit__(None, None, None)


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
        content: dict[str, Any] = json.loads(get(base, "/stats", headers=scenario.headers)[1])
        return content

    yield Target(base, lambda: math.nan, stats, base)


def get(
    base: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> tuple[int, bytes]:
    """One request; raises OSError or http.client.HTTPException where nothing answers."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        method = "GET" if body is None else "POST"
        kind_of = {"content-type": "application/json"} if body is not None else {}
        sent = {**kind_of, **(headers or {})}
        connection.request(method, parts.path.rstrip("/") + path, body, sent)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_http(base: str, path: str, headers: Mapping[str, str]) -> None:
    """Raise TargetFailed where no muxserve is ready there."""
    try:
        status, body = get(base, path, headers=headers)
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
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--address", address],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + _BRIDGE_START_S
            while True:
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        tail = log.read().decode(errors="replace")[-1000:]
                        raise TargetFailed(f"no handle at Ray's {address}: {tail}") from None
                    time.sleep(0.2)
            yield port
        finally:
            stop(process, 10.0)


def model_name(scenario: Scenario) -> str:
    """Of the Open Inference Protocol: as given, or the family's."""
    if scenario.model is not None:
        return scenario.model
    from muxserve.models.family import read_spec, resolve

    try:
        return read_spec(resolve(scenario.family)).name
    except (OSError, ValueError) as error:
        raise InvalidInput(f"family: {error}", field="family") from None
