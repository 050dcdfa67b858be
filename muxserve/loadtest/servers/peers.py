"""Other servers of the same plain model, to compare with; each has an environment of its own.

A peer starts from a Hugging Face folder and has classified a text before it is measured. It runs
as its own documentation advises; nothing here slows one down or favours another.
"""

import http.client
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from muxserve.loadtest.servers.http_request import request
from muxserve.loadtest.servers.plain_model import LABELS
from muxserve.loadtest.servers.process import HOST, ProcessFailed, cpu_seconds, running_process

#: Requirements and server scripts; they are part of the checkout, not of the package.
SCRIPTS = Path(__file__).parents[3] / "benchmarks" / "peers"
START_LIMIT_S = 180.0
STOP_LIMIT_S = 20.0


class PeerFailed(ProcessFailed):
    """A peer could not be installed, did not start or did not classify; the message says why."""


@dataclass(frozen=True)
class Launch:
    """What a start command is made of."""

    python: Path
    model: Path
    host: str
    port: int
    threads: int
    dtype: str


@dataclass(frozen=True)
class Peer:
    """A server, and how to speak to it.

    Attributes:
        name: as in tables; also names its environment.
        path: of the HTTP route that classifies one text.
        command: the arguments that start it.
        body: the request for a text, as JSON bytes.
        scores: the probabilities of the labels, in the order of the model's labels, in a response.
        requirements: what its environment holds; None runs in the environment of muxserve.
        variables: environment variables that it is started with.
    """

    name: str
    path: str
    command: Callable[[Launch], list[str]]
    body: Callable[[str], bytes]
    scores: Callable[[Any], list[float]]
    requirements: Path | None
    variables: Mapping[str, str]


@dataclass(frozen=True)
class RunningPeer:
    """A peer that answers.

    Attributes:
        peer: which.
        host: address it listens on.
        port: its HTTP port.
        pid: its first process.
    """

    peer: Peer
    host: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://{self.host}:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time of its processes until now; NaN where there is no ``/proc``.

        Counts the processes that live, and those that they have waited for. Take the difference of
        two calls between which no process ends.
        """
        return cpu_seconds(self.pid)

    def classify(self, text: str, *, timeout_s: float = 10.0) -> list[float]:
        """The probabilities of one text.

        Raises:
            OSError, http.client.HTTPException: nothing answers.
            PeerFailed: the answer is not 200 with scores that sum to 1.
        """
        status, content = request(
            self.url, self.peer.path, self.peer.body(text), timeout_s=timeout_s
        )
        if status != 200:
            raise PeerFailed(f"{self.peer.name} answers {status}: {content[:200]!r}")
        try:
            scores = [float(score) for score in self.peer.scores(json.loads(content))]
        except (LookupError, TypeError, ValueError) as error:
            raise PeerFailed(f"{self.peer.name}: no scores in {content[:200]!r}") from error
        # bfloat16 keeps 8 bits of each probability.
        if len(scores) < 2 or not math.isclose(sum(scores), 1, abs_tol=0.02):
            raise PeerFailed(f"{self.peer.name}: {scores} are not the probabilities of labels")
        return scores


def environment(peer: Peer, root: Path) -> Path:
    """The interpreter that runs a peer; its environment is installed if need be.

    An environment is used again while the requirements and the version of Python stay the same;
    one that was never finished is made anew.

    Args:
        peer: which.
        root: folder of the environments.

    Raises:
        PeerFailed: pip could not install the requirements.
    """
    if peer.requirements is None:
        return Path(sys.executable)
    folder = root.resolve() / peer.name  # peers run in folders of their own
    python = folder / "bin" / "python"
    marker = folder / "installed.txt"
    wanted = f"# Python {sys.version.split()[0]}\n{peer.requirements.read_text()}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{peer.name}.lock"):
        if _is_installed(python, marker, wanted):
            return python
        print(f"... {peer.name}: installing its environment", file=sys.stderr, flush=True)  # noqa: T201
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [*pip, "--disable-pip-version-check", "--requirement", str(peer.requirements)],
        ):
            done = subprocess.run(command, stdout=sys.stderr, check=False)
            if done.returncode:
                raise PeerFailed(f"{peer.name}: {' '.join(command)} ended with {done.returncode}")
        # Last, so that only a whole environment has it.
        marker.write_text(wanted)
    return python


def _is_installed(python: Path, marker: Path, wanted: str) -> bool:
    return python.exists() and marker.is_file() and marker.read_text() == wanted


@contextmanager
def running(
    peer: Peer,
    python: Path,
    model: Path,
    *,
    port: int,
    threads: int,
    dtype: str = "float32",
    host: str = HOST,
    start_limit_s: float = START_LIMIT_S,
    more: Sequence[str] = (),
) -> Iterator[RunningPeer]:
    """A peer, from its first answer until the block ends; then SIGINT, and the rest is killed.

    Args:
        peer: which.
        python: interpreter of its environment.
        model: folder that ``write_plain_model`` made.
        port: a free one.
        threads: of torch, all workers together.
        dtype: of weights and activations, ``float32`` or ``bfloat16``.
        host: address to listen on.
        start_limit_s: longest wait for the first answer.
        more: arguments after the peer's own, to try other settings: ``--batch-size 64``.

    Raises:
        PeerFailed: the port is taken, or no text was classified in time.
    """
    _check_port_is_free(host, port)
    launch = Launch(python, model.resolve(), host, port, threads, dtype)
    settings = {
        # Clients share the cores: threads of OpenMP that spin while they wait for one another
        # would take several times the processor time, and answer a fraction of the requests.
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        # Where a server has no option for it, this is what torch reads.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        **peer.variables,
    }
    last: Exception | None = None

    def classifies() -> bool:
        nonlocal last
        try:
            RunningPeer(peer, host, port, 0).classify("a text that shows whether the model answers")
        except (OSError, http.client.HTTPException, PeerFailed) as error:
            last = error
            return False
        return True

    def why_not(code: int | None) -> str:
        if code is not None:
            return f"{peer.name} ended with {code} before it answered"
        return (
            f"{peer.name} classified nothing within {start_limit_s:.0f} s; "
            f"the last attempt: {last!r}"
        )

    # Some servers leave files in the folder they are started in.
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        try:
            with running_process(
                [*peer.command(launch), *more],
                classifies,
                why_not,
                start_limit_s=start_limit_s,
                stop_limit_s=STOP_LIMIT_S,
                environment=settings,
                folder=Path(folder),
            ) as pid:
                yield RunningPeer(peer, host, port, pid)
        except PeerFailed:
            raise
        except ProcessFailed as error:
            raise PeerFailed(str(error)) from last


def _check_port_is_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        # A port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PeerFailed(f"{host}:{port}: {error.strerror}") from None


def _text_body(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def _infinity_body(text: str) -> bytes:
    return json.dumps({"input": [text]}).encode()


def _infinity_scores(answer: Any) -> list[float]:
    """Infinity gives the labels by falling score."""
    return [
        one["score"]
        for one in sorted(answer["data"][0], key=lambda one: LABELS.index(one["label"]))
    ]


def _script_scores(answer: Any) -> list[float]:
    scores: list[float] = answer["scores"]
    return scores


def _infinity_command(launch: Launch) -> list[str]:
    return [
        *(str(launch.python.with_name("infinity_emb")), "v2"),
        *("--model-id", str(launch.model), "--served-model-name", "plain"),
        *("--engine", "torch", "--device", "cpu", "--dtype", launch.dtype),
        "--model-warmup",
        *("--host", launch.host, "--port", str(launch.port), "--log-level", "error"),
    ]


def _script_command(script: str) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        return [
            *(str(launch.python), str(SCRIPTS / script), "--model", str(launch.model)),
            *("--host", launch.host, "--port", str(launch.port)),
            *("--threads", str(launch.threads), "--dtype", launch.dtype),
        ]

    return command


def _script_peer(name: str, path: str, script: str, *, own: bool = True, **variables: str) -> Peer:
    return Peer(
        name=name,
        path=path,
        command=_script_command(script),
        body=_text_body,
        scores=_script_scores,
        requirements=SCRIPTS / f"requirements-{name}.txt" if own else None,
        variables=variables,
    )


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="infinity-emb",
            path="/classify",
            command=_infinity_command,
            body=_infinity_body,
            scores=_infinity_scores,
            requirements=SCRIPTS / "requirements-infinity-emb.txt",
            variables={"INFINITY_ANONYMOUS_USAGE_STATS": "0", "INFINITY_BATCH_SIZE": "32"},
        ),
        _script_peer("litserve", "/predict", "serve_litserve.py"),
        _script_peer("mosec", "/inference", "serve_mosec.py"),
        # The Ray, torch and transformers that muxserve has, so that only the serving differs.
        _script_peer("ray-serve", "/", "serve_ray.py", own=False),
    )
}
