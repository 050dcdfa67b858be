"""A server whose figures are known: each answer takes so long, so many go on at once, some fail.

    python -m tests.loadtest.fake_server --port 8123 --delay-ms 50 --at-once 10 --error-every 7

It counts what it answered, by status, in ``GET /counts``, so that a test can compare.
"""

import argparse
import asyncio
import json
import os
from collections import Counter


class FakeServer:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._free = asyncio.Semaphore(options.at_once)
        self._asked = 0
        self.counts: Counter[str] = Counter()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                path = head.split(b" ")[1].decode()
                wanted = self._options.authorization
                if path != "/counts" and wanted and wanted.encode() not in head:
                    status, content = 401, {"error": "unauthorized", "message": "who are you?"}
                else:
                    status, content = await self._answer(path, body)
                payload = json.dumps(content).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(payload)}\r\n\r\n".encode()
                    + payload
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[int, object]:
        if path == "/counts":
            return 200, self.counts
        if path in ("/ready", "/v2/health/ready"):
            return 200, {}
        if path == "/stats":
            answered = self.counts["200"]
            engine = {"slots": 2 * answered, "filled_slots": answered, "waiting": 0}
            return 200, {"engines": [{**engine, "texts_by_num_instances": {"2": answered}}]}
        if path == "/v2/models/fake":
            return 200, {
                "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}],
                "outputs": [
                    {"name": name, "datatype": kind, "shape": [-1, 1]}
                    for name, kind in (("LABEL", "BYTES"), ("num_instances", "INT32"))
                ],
            }
        if path not in ("/predict", "/v2/models/fake/infer"):
            return 404, {"error": "not_found", "message": "there is nothing here"}
        return await self._classify(path, json.loads(body))

    async def _classify(self, path: str, request: dict[str, object]) -> tuple[int, object]:
        options = self._options
        if "max_num_instances" in request:  # asked before the load, and not part of it
            return 200, [_answer_for(one, options.label, 1) for one in request["inputs"]]
        self._asked += 1
        number = self._asked
        if options.reset_every and number % options.reset_every == 0:
            self.counts["reset"] += 1
            raise ConnectionResetError("read, and never answered")
        if options.die_after and number > options.die_after:
            os._exit(1)
        async with self._free:
            slow = options.slow_every and number % options.slow_every == 0
            await asyncio.sleep((options.slow_ms if slow else options.delay_ms) / 1000)
        if options.error_every and number % options.error_every == 0:
            self.counts[str(options.status)] += 1
            return options.status, {"error": "overloaded", "message": "the line is full"}
        self.counts["200"] += 1
        if path.endswith("/infer"):
            count = len(request["inputs"][0]["data"])
            return 200, {
                "outputs": [
                    {"name": "LABEL", "datatype": "BYTES", "data": ["positive"] * count},
                    {"name": "num_instances", "datatype": "INT32", "data": [2] * count},
                ]
            }
        inputs = request["inputs"]
        if isinstance(inputs, str):
            return 200, _answer_for(inputs, options.label)
        return 200, [_answer_for(one, options.label) for one in inputs]


def _answer_for(text: str, label: str, n: int = 2) -> list[dict[str, object]]:
    if text.startswith("words "):
        return [{**_entry("NOUN", n), "word": word} for word in text.split()]
    return [_entry(label, n), _entry("negative", n)]


def _entry(label: str, n: int) -> dict[str, object]:
    return {"label": label, "score": 0.5, "num_instances": n}


async def _serve(options: argparse.Namespace) -> None:
    fake = FakeServer(options)
    server = await asyncio.start_server(fake.connection, "127.0.0.1", options.port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--slow-every", type=int, default=0)
    parser.add_argument("--slow-ms", type=float, default=0.0)
    parser.add_argument("--at-once", type=int, default=1_000_000)
    parser.add_argument("--error-every", type=int, default=0)
    parser.add_argument("--status", type=int, default=503)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--reset-every", type=int, default=0)
    parser.add_argument("--authorization", default="")
    parser.add_argument("--label", default="positive")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
