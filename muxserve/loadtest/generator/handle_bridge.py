"""A Ray driver that calls a deployment's handle for whoever sends it texts over a socket.

    python -m muxserve.loadtest.generator.handle_bridge --port 9100 --address 10.0.0.1:6379

Ray and gevent do not share a process, so Locust's users reach a handle through this. A request
is one line of JSON, ``{"id", "texts"}``; so is its answer, ``{"id", "status", "answers"}`` or
``{"id", "status", "message"}``.
"""

import argparse
import asyncio
import contextlib
import json
import os
from typing import Any

import orjson


class Bridge:
    """Lines in, calls of the handle, lines out; as many at once as come."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client ends it."""
        while line := await reader.readline():
            call = asyncio.create_task(self._call(orjson.loads(line), writer))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        writer.close()

    async def _call(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            answer["answers"] = await self._handle.classify.remote(request["texts"])
            answer["status"] = "200"
        except Exception as error:  # whatever the deployment raises is the answer
            answer["status"] = str(getattr(error, "status", 500))
            answer["message"] = str(error)[:300]
        writer.write(orjson.dumps(answer) + b"\n")


async def _run(port: int, address: str) -> None:
    import ray
    from ray import serve

    ray.init(address=address, namespace="serve", log_to_driver=False)
    bridge = Bridge(serve.get_app_handle("default"))
    server = await asyncio.start_server(bridge.serve, "127.0.0.1", port, limit=2**24)
    print(json.dumps({"ready": port}), flush=True)  # noqa: T201 - whoever started it waits for this
    async with server:
        await server.serve_forever()


def main() -> None:
    """Until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address", default="auto", help="of the Ray cluster")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(options.port, options.address))


if __name__ == "__main__":
    main()
