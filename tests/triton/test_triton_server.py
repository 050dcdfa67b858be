"""``python -m muxserve.loadtest.servers.triton``: serves until stopped, and leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.loadtest.servers.triton import TritonFailed, TritonServer

ROOT = Path(__file__).parents[2]
BOUND_S = 60


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_its_server_ends_with_it(
    number, triton_environment, exported, tmp_path
):
    (tmp_path / "tiny_n1").symlink_to(exported.folder / "tiny_n1")
    port = free_port()
    command = [sys.executable, "-m", "muxserve.loadtest.servers.triton", str(tmp_path)]
    command += ["--http-port", str(port), "--grpc-port", str(free_port())]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert "ready: HTTP on" in str(running.stderr.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
        os.kill(running.pid, number)
        assert running.wait(BOUND_S) == 0
    finally:
        running.kill()
        running.stderr.close()
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        try:
            httpx.get(f"http://127.0.0.1:{port}/v2/health/live")
        except httpx.ConnectError:
            return
    raise AssertionError("the server is still there")


def test_a_server_that_is_not_installed_says_how(tmp_path):
    with pytest.raises(TritonFailed, match="make triton-server"):
        TritonServer(tmp_path, environment=tmp_path).start()


@pytest.mark.triton
def test_a_server_that_does_not_start_says_why(triton_environment, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.pbtxt").write_text('name: "broken"\nmax_batch_sise: 4\n')
    with pytest.raises(TritonFailed, match=r"model directory .broken.: failed to read text proto"):
        TritonServer(tmp_path, environment=triton_environment).start()
