"""The Locust users, run by Locust itself: known answers of a server with a known delay."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from muxserve.bench.server import free_port
from muxserve.serving.listener import Listener

ROOT = Path(__file__).parents[2]
BOUND_S = 60
DELAY_S = 0.2


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    """Answers /predict after ``DELAY_S`` at N=5, every fourth request with 503."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    seen: list[tuple[str, bytes]] = []

    async def app(scope, receive, send) -> None:
        message = await receive()
        seen.append((scope["path"], message["body"]))
        refused = len(seen) % 4 == 0
        await asyncio.sleep(DELAY_S)
        headers = [(b"content-type", b"application/json"), (b"x-muxserve-num-instances", b"5")]
        body = b'{"error":"overloaded","message":"full"}' if refused else b"[]"
        headers.append((b"content-length", str(len(body)).encode()))
        status = 503 if refused else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    port = free_port()

    async def start() -> Listener:
        listener = Listener("127.0.0.1", port)
        listener.start(app)
        return listener

    listener = asyncio.run_coroutine_threadsafe(start(), loop).result(BOUND_S)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}", seen=seen)
    asyncio.run_coroutine_threadsafe(listener.stop(), loop).result(BOUND_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(BOUND_S)


def command(*arguments: str, files: str = "loadtests/locustfile.py") -> list[str]:
    return [sys.executable, "-m", "locust", "-f", files, "--skip-log-setup", *arguments]


def locust(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(*arguments, **settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def stats_of(folder: Path) -> dict[str, str]:
    with (folder / "run_stats.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")


def test_requests_come_at_their_rate_whatever_the_answers_take(server, tmp_path):
    """80 a second of 0.2 s each from 4 users: a closed loop of 4 would send 20 a second."""
    server.seen.clear()
    ran = locust(
        *("--host", server.url, "--headless", "-u", "4", "-r", "100", "-t", "5s", "-s", "30"),
        *("--rate-per-user", "20", "--csv", str(tmp_path / "run"), "OneText"),
    )
    assert ran.returncode == 1, ran.stderr  # Locust's own: some requests failed
    found = stats_of(tmp_path)
    sent = int(found["Request Count"])
    assert sent == len(server.seen), "every request that was sent is counted"
    assert 300 < sent < 500  # 400, with six standard deviations of a Poisson process to spare
    assert int(found["Failure Count"]) == sent // 4
    assert 1000 * DELAY_S <= float(found["Median Response Time"]) < 1000 * (DELAY_S + 0.2)
    with (tmp_path / "run_failures.csv").open() as file:
        (failure,) = csv.DictReader(file)
    assert "503 overloaded" in failure["Error"]
    texts = {json.loads(body)["inputs"] for _, body in server.seen}
    assert len(texts) > 100


def test_texts_of_a_file_and_a_cap_are_sent_and_32_go_in_one_request(server, tmp_path):
    server.seen.clear()
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    ran = locust(
        *("--host", server.url, "--headless", "-u", "1", "-t", "2s", "-s", "30"),
        *("--texts", str(tmp_path / "texts.txt"), "--max-num-instances", "2", "ManyTexts"),
    )
    assert "Traceback" not in ran.stderr
    body = json.loads(server.seen[0][1])
    assert (len(body["inputs"]), set(body["inputs"])) == (32, {"one", "two"})
    assert body["max_num_instances"] == 2


def test_a_server_that_is_not_there_is_a_failure_of_every_request(tmp_path):
    ran = locust(
        *("--host", f"http://127.0.0.1:{free_port()}", "--headless", "-u", "2", "-t", "2s"),
        *("--csv", str(tmp_path / "run"), "OneText"),
    )
    assert ran.returncode == 1
    found = stats_of(tmp_path)
    assert int(found["Request Count"]) == int(found["Failure Count"]) > 0
    assert "Traceback" not in ran.stderr


def test_a_master_and_workers_add_up_and_tell_of_n(server, tmp_path):
    server.seen.clear()
    port = str(free_port())
    workers = [
        subprocess.Popen(
            command("--worker", "--master-port", port, "OneText"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py"),
                *("--master", "--master-bind-port", port, "--expect-workers", "2"),
                *("--host", server.url, "--headless", "-u", "4", "-r", "100", "-t", "4s"),
                *("-s", "30", "--rate-per-user", "10", "--csv", str(tmp_path / "run"), "OneText"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(BOUND_S)
    assert int(stats_of(tmp_path)["Request Count"]) == len(server.seen) > 80
    assert "served at a mean N of 5.00 (N=5: 100.0%)" in ran.stderr


def test_a_burst_is_a_burst_of_arrivals(server, tmp_path):
    server.seen.clear()
    arrived: list[int] = []
    running = subprocess.Popen(
        command(
            *("--host", server.url, "--headless", "OneText", "-s", "30", "--load", "burst"),
            *("--steady", "1", "--factor", "10", "--stretch", "2", "--rate-per-user", "20"),
            files="loadtests/locustfile.py,loadtests/shapes.py",
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + BOUND_S
    while not server.seen and time.monotonic() < end:
        time.sleep(0.02)
    for _ in range(3):
        before = len(server.seen)
        time.sleep(2)
        arrived.append(len(server.seen) - before)
    running.communicate(timeout=BOUND_S)
    assert arrived[1] > 3 * max(arrived[0], arrived[2]), arrived


def test_ctrl_c_ends_it_with_what_was_measured(server, tmp_path):
    server.seen.clear()
    running = subprocess.Popen(
        command("--host", server.url, "--headless", "-u", "2", "-t", "60s", "OneText"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + BOUND_S
    while len(server.seen) < 10 and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=BOUND_S)
    assert "Aggregated" in out + err
    assert "Traceback" not in err


def test_the_open_inference_users_are_answered_by_a_real_engine(tiny_family, tmp_path):
    from muxserve import Engine
    from muxserve.engine.config import EngineConfig
    from tests.serving.test_oip import serving

    with (
        Engine.from_family(tiny_family, EngineConfig(warm_up_s=0.3)) as engine,
        serving(engine, name="sentiment") as running,
    ):
        for files, host, user in (
            ("loadtests/locustfile.py", f"http://{running.http}", "OpenInference"),
            ("loadtests/grpc_locustfile.py", running.grpc, "OpenInferenceGrpc"),
        ):
            ran = locust(
                *("--host", host, "--headless", "-u", "2", "-r", "10", "-t", "3s", "-s", "10"),
                *("--csv", str(tmp_path / "run"), "--max-num-instances", "2", user),
                files=files,
            )
            found = stats_of(tmp_path)
            assert int(found["Request Count"]) > 10
            assert int(found["Failure Count"]) == 0, ran.stderr
