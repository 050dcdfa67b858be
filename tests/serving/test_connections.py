"""Connections that mean harm, on real sockets: each ends in time, and others are answered."""

import asyncio
import json
import resource
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from muxserve.loadtest.servers.muxserve import free_port

BOUND_S = 20
#: An app that answers with the body it read, in a process with few descriptors.
SERVER = """
import asyncio, json, resource, sys, logging
import uvloop
logging.basicConfig(level=logging.INFO)
from muxserve.errors import MuxserveError
from muxserve.serving.protocols.bodies import Bodies, ClientGone
from muxserve.serving.listening.connections import ConnectionsConfig
from muxserve.serving.listening.listener import Listener
from muxserve.serving.listening.timers import Timers
port, descriptors, settings = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
bodies = Bodies(2**20, Timers())
async def app(scope, receive, send):
    status, headers = 200, []
    try:
        if scope["path"] == "/large":
            body = b"x" * 20_000_000
        else:
            body = await bodies.read(scope, receive, 100_000, 2.0, "")
    except ClientGone:
        return
    except MuxserveError as error:
        status, body = error.status, error.code.encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
async def main():
    listener = Listener("127.0.0.1", port, ConnectionsConfig(**settings))
    listener.start(app)
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main(), loop_factory=uvloop.new_event_loop) if sys.version_info >= (3, 12) else \
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""
POST = b"POST / HTTP/1.1\r\nhost: x\r\n"


@contextmanager
def serving(descriptors: int = 512, **settings: float) -> Iterator[int]:
    """A server's port; its log is empty of complaints at the end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(descriptors), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        until_s = time.monotonic() + BOUND_S
        while time.monotonic() < until_s:
            try:
                connect(port).close()
                break
            except OSError:
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        _, log = process.communicate()
    assert b"WARNING" not in log, log
    assert b"ERROR" not in log, log
    assert b"Traceback" not in log, log


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(
        first_byte_timeout_s=1, head_timeout_s=1, idle_timeout_s=2, write_timeout_s=1
    ) as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), BOUND_S)


def all_of(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    came = b""
    while True:
        try:
            part = client.recv(65_536)
        except ConnectionResetError:
            return came
        if not part:
            return came
        came += part


def refused(answer: bytes, status: int, code: str) -> None:
    head, body = answer.split(b"\r\n\r\n", 1)
    lines = head.lower().split(b"\r\n")
    assert int(lines[0].split()[1]) == status, answer
    assert b"content-type: application/json" in lines
    assert b"connection: close" in lines
    assert b"content-length: %d" % len(body) in lines
    assert json.loads(body)["error"] == code


def answered(port: int, body: bytes = b"good") -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/", content=body, timeout=BOUND_S)
    assert (answer.status_code, answer.content) == (200, body)


@pytest.mark.parametrize("descriptors", [512, 1024])
def test_two_thousand_silent_connections_leave_room_for_others(descriptors):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3000), hard))
    silent = []
    try:
        with serving(descriptors) as port:
            for index in range(2000):
                silent.append(connect(port))
                if index % 200 == 0:
                    answered(port)
            answered(port)
    finally:
        for one in silent:
            one.close()


def test_where_all_are_asking_new_ones_are_told_at_once():
    with serving(max_connections=16) as port:
        time.sleep(0.2)  # the connections of the start are gone
        asking = []
        for _ in range(16):
            asking.append(connect(port))
            asking[-1].sendall(POST + b"content-length: 2\r\n\r\na")
            time.sleep(0.02)  # it is read
        with connect(port) as late:
            refused(all_of(late), 503, "overloaded")
        for one in asking:
            one.sendall(b"b")
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
            one.close()


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "empty lines"])
def test_a_silent_connection_ends(port, sent):
    with connect(port) as client:
        client.sendall(sent)
        assert all_of(client) == b""


def test_a_head_that_trickles_ends_with_408(port):
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        client.settimeout(0.1)
        answer = b""
        for _ in range(100):
            client.sendall(b"a: b\r\n")
            try:
                answer = client.recv(1000)
                break
            except TimeoutError:
                answered(port)
        refused(answer, 408, "request_timeout")


def test_a_body_that_trickles_ends_with_504(port):
    with connect(port) as client:
        client.sendall(POST + b"content-length: 1000\r\n\r\n")
        client.settimeout(0.2)
        for _ in range(50):
            client.sendall(b"a")
            try:
                assert client.recv(1000).startswith(b"HTTP/1.1 504")
                return
            except TimeoutError:
                answered(port)
    pytest.fail("it went on")


@pytest.mark.parametrize("name", [b"a", b"\r\nb: c"], ids=["one value", "many"])
def test_megabytes_of_head_get_431(port, name):
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\na: ")
        for _ in range(160):
            client.sendall(name * (65_536 // len(name)))
        client.shutdown(socket.SHUT_WR)
        refused(all_of(client), 431, "head_too_large")
    answered(port)


def test_a_head_of_60_kb_is_read(port):
    headers = {"x-long": "a" * 60_000}
    assert httpx.post(f"http://127.0.0.1:{port}/", headers=headers).status_code == 200


def test_a_client_that_never_reads_is_let_go(port):
    with connect(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(3)
        assert len(all_of(client)) < 20_000_000
    answered(port)


def test_half_closed_connections_end(port):
    clients = [connect(port) for _ in range(50)]
    for client in clients:
        client.sendall(POST + b"content-length: 5\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
    for client in clients:
        all_of(client)
        client.close()
    answered(port)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET http:///\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
        POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
    ],
)
def test_what_cannot_be_read_gets_json(port, sent):
    with connect(port) as client:
        client.sendall(sent)
        refused(all_of(client), 400, "bad_request")


def test_what_cannot_be_read_is_answered_after_what_came_before(port):
    with connect(port) as client:
        client.sendall(POST + b"content-length: 5\r\n\r\nfirstnonsense\r\n\r\n")
        answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 200")
    _, rest = answer.split(b"first", 1)
    refused(rest, 400, "bad_request")


H2C = POST + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %s\r\nhttp2-settings: AAMAAABk\r\n"


@pytest.mark.parametrize("wish", [b"h2c", b"websocket"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_wish_for_another_protocol_is_passed_over(port, wish, size):
    sent = (H2C % wish + b"content-length: 5\r\n\r\nfirst") * 2
    sent += H2C % wish + b"transfer-encoding: chunked\r\n\r\n5\r\nthird\r\n0\r\n\r\n"
    sent += POST + b"connection: close\r\ncontent-length: 4\r\n\r\nlast"
    with connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
        answer = all_of(client)
    assert answer.count(b"HTTP/1.1 200") == 4
    assert [answer.count(one) for one in (b"first", b"third", b"last")] == [2, 1, 1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_asking_for_http2_is_answered(port):
    command = ["curl", "-s", "--http2", "-d", "body", f"http://127.0.0.1:{port}/"]
    assert subprocess.run(command, capture_output=True, timeout=BOUND_S).stdout == b"body"


JAVA = """
import java.net.URI;
import java.net.http.*;
public class Ask {
  public static void main(String[] given) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 3; i++) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(given[0]))
          .POST(HttpRequest.BodyPublishers.ofString("body" + i)).build();
      System.out.print(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
  }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="no java here")
def test_javas_http_client_is_answered(port, tmp_path):
    (tmp_path / "Ask.java").write_text(JAVA)
    command = ["java", str(tmp_path / "Ask.java"), f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.stdout == b"body0body1body2", done.stderr


def packed(body: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(9, wbits=bits)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "content", "status", "answer"),
    [
        ("gzip", packed(b"abc" * 9000, 31), 200, b"abc" * 9000),
        ("GZIP", packed(b"a", 31) + packed(b"b", 31), 200, b"ab"),
        ("deflate", packed(b"abc", 15), 200, b"abc"),
        ("deflate", packed(b"abc", -15), 200, b"abc"),
        ("identity", b"abc", 200, b"abc"),
        ("gzip", packed(bytes(50_000_000), 31), 413, b"body_too_large"),
        ("gzip", packed(bytes(200_000), 31), 413, b"body_too_large"),
        ("gzip", packed(b"", 31) * 3000, 400, b"malformed_encoding"),
        ("gzip", packed(b"abc", 31)[:-3], 400, b"malformed_encoding"),
        ("gzip", b"plain", 400, b"malformed_encoding"),
        ("gzip", b"", 400, b"malformed_encoding"),
        ("deflate", packed(b"abc", 15) + b"more", 400, b"malformed_encoding"),
        ("br", b"abc", 415, b"unsupported_encoding"),
        ("gzip, gzip", packed(packed(b"a", 31), 31), 415, b"unsupported_encoding"),
    ],
)
def test_packed_bodies_are_read_within_the_limit(port, encoding, content, status, answer):
    got = httpx.post(
        f"http://127.0.0.1:{port}/", content=content, headers={"content-encoding": encoding}
    )
    assert (got.status_code, got.content) == (status, answer)


def test_a_flood_of_pipelined_requests_ends():
    async def flood(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 5000)
        answers = (await asyncio.wait_for(reader.read(10_000_000), BOUND_S)).count(b"HTTP/1.1")
        writer.close()
        return answers

    with serving() as port:
        assert asyncio.run(flood(port)) >= 1
        answered(port)
