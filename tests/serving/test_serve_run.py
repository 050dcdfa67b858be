"""``serve run`` as a user types it, with a Ray of its own: it starts quietly, answers and ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from muxserve.loadtest.servers.muxserve import free_port

ROOT = Path(__file__).parents[2]
SERVE = Path(sys.executable).with_name("serve")
BOUND_S = 180


@pytest.mark.ray
def test_the_yaml_file_serves_until_interrupted(tmp_path, tiny_family):
    content = yaml.safe_load((ROOT / "deployments" / "sentiment.yaml").read_text())
    port = content["http_options"]["port"] = free_port()
    arguments = content["applications"][0]["args"]
    arguments["family"] = str(tiny_family)
    arguments["engine"]["warm_up_s"] = 1
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    with serve_run(file, log) as running:
        wait_until_ready(url, running, log)
        answer = httpx.post(f"{url}/predict", json={"inputs": "A moving, beautifully shot film."})
        assert answer.json()[0]["num_instances"] == 1
    lines = log.read_text(errors="replace").splitlines()
    # Ray says at this level how its own clusters are protected, wherever it starts one, and that a
    # replica was slow to say its queue length, on a machine that is busy.
    of_ray = ("authentication_token_setup.py", "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S")
    ours = [line for line in lines if not any(remark in line for remark in of_ray)]
    assert not [line for line in ours if "WARNING" in line or "ERROR" in line]
    assert not [line for line in ours if "Traceback" in line]


@contextmanager
def serve_run(file: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """``serve run`` of a file until the block ends, and what it says in ``log``."""
    # Its own Ray, and not one that the machine may have.
    settings = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as output:
        running = subprocess.Popen(
            [SERVE, "run", file], cwd=ROOT, env=settings, stdout=output, stderr=output
        )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(BOUND_S)
        except subprocess.TimeoutExpired:
            running.kill()
            raise


def wait_until_ready(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end and running.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready:\n{log.read_text(errors='replace')}")


def test_a_mistake_is_told_before_ray_starts():
    ended = subprocess.run(
        [SERVE, "run", "deployments.sentiment:app", "engine.latency_targt_ms=20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode != 0
    assert "did you mean 'engine.latency_target_ms'" in ended.stderr
    assert "Ray instance" not in ended.stderr + ended.stdout
