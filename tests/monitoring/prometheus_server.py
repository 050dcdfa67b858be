"""A Prometheus server for tests: it scrapes one port, evaluates the rules and answers queries."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from muxserve.loadtest.servers.muxserve import free_port
from tests.monitoring.queries import Doc
from tests.ray_serve import BOUND_S, until


def tool(name: str) -> str:
    """The path of a Prometheus program; a test fails without it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is not on PATH: `make test-monitoring` fetches it on Debian and Ubuntu; "
            "elsewhere install Prometheus 2.42 or later"
        )
    return path


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool, with stdout and stderr combined."""
    return subprocess.run(
        [tool("promtool"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=BOUND_S).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def names(self) -> set[str]:
        """The names of its metrics."""
        return set(self._get("label/__name__/values"))

    def query(self, expr: str) -> list[Any]:
        """The current samples of an expression."""
        result: list[Any] = self._get("query", query=expr)["result"]
        return result

    def value(self, expr: str) -> float:
        """The current single sample of an expression; 0 if there is none."""
        result = self.query(expr)
        return float(result[0]["value"][1]) if result else 0.0

    def is_scraping(self) -> bool:
        """Whether every target answers."""
        targets = self._get("targets")["activeTargets"]
        return bool(targets) and all(one["health"] == "up" for one in targets)


@contextmanager
def prometheus(folder: Path, port: int, rules: Doc, namespace: str) -> Iterator[Prometheus]:
    """Run a server that scrapes a port of this machine every second.

    Args:
        folder: empty folder for its files.
        port: of the metrics.
        rules: content of a rule file.
        namespace: label of all that is scraped, as prometheus-operator sets it.
    """
    # The rules as they are, but evaluated every second instead of every minute.
    groups = [{**group, "interval": "1s"} for group in rules["groups"]]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": namespace}}
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "ray", "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    log = folder / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        server = Prometheus(f"http://{address}")
        until(lambda: _is_ready(server, running, log), "Prometheus answers")
        yield server
    finally:
        running.terminate()
        running.wait(30)


def _is_ready(server: Prometheus, running: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert running.poll() is None, log.read_text(errors="replace")
    try:
        return httpx.get(f"{server.url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
