"""Fake servers and scenario files."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from muxserve.loadtest.servers.muxserve import free_port
from tests.ray_serve import until
from tests.test_cli import ENVIRONMENT

ROOT = Path(__file__).parents[2]


@dataclass
class Fake:
    """A fake server that answers."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counts(self) -> dict[str, int]:
        """What it answered so far, by status."""
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as response:
            counts: dict[str, int] = json.load(response)
            return counts


@contextmanager
def fake(**options: float | str) -> Iterator[Fake]:
    """A fake server; options as of its command line."""
    port = free_port()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.loadtest.fake_server", "--port", str(port), *flags]
    process = subprocess.Popen(command, cwd=ROOT)
    server = Fake(port, process)

    def answers() -> bool:
        try:
            server.counts()
        except (OSError, urllib.error.URLError):
            return False
        return True

    try:
        until(answers, "the fake server answers")
        yield server
    finally:
        process.kill()
        process.wait()


def write_scenario(folder: Path, url: str, *load: dict[str, Any], **changes: Any) -> Path:
    """A scenario of one server at a URL, with few texts."""
    content = {
        "name": "test",
        "servers": [{"name": "fake", "url": url}],
        "texts": {"count": 300},
        "load": list(load),
        **changes,
    }
    file = folder / "scenario.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(scenario: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """``muxserve loadtest`` under way."""
    return subprocess.Popen(
        [sys.executable, "-m", "muxserve", "loadtest", str(scenario), "--out", str(out), *more],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(scenario: Path, out: Path, *more: str) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error."""
    process = start(scenario, out, *more)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def report_of(out: Path) -> dict[str, Any]:
    """The report that it wrote."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report
