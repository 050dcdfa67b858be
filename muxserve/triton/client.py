"""Texts as token ids in, an outcome for each out, through a Triton server over gRPC.

A call that Triton could not take is sent once more when it is back. That is safe, because a
prediction has no effects. While Triton cannot be reached, texts are refused with 503; they do not
wait without end.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from muxserve.engine.liveness import Liveness
from muxserve.engine.request import Outcome, Prediction
from muxserve.errors import (
    DeadlineExceeded,
    ForwardFailed,
    InvalidInput,
    MuxserveError,
    NotReady,
    Overloaded,
)
from muxserve.models.family import Family
from muxserve.triton.channel import Channels
from muxserve.triton.config import TritonConfig
from muxserve.triton.identity import difference, identity

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 2.0
#: A call is sent again at most once: a text that ends the server must not end it for ever.
_ATTEMPTS = 2
#: How much sooner than our clock gRPC's and Triton's may say that time is up.
_CLOCK_S = 0.01


@dataclass(frozen=True, slots=True)
class _Served:
    """What the server says of its model."""

    pad_id: int
    max_batch_size: int
    fixed_width: int | None
    outputs: frozenset[str]


@dataclass(slots=True)
class Calls:
    """Counters of a client.

    Attributes:
        calls, texts: sent; a call that is sent again counts again.
        retried: calls that were sent again.
        refused: calls that Triton's full queue refused.
        unreachable: texts that got 503 because no Triton could be reached.
    """

    calls: int = 0
    texts: int = 0
    retried: int = 0
    refused: int = 0
    unreachable: int = 0


class _Unreachable(Exception):
    """The server, or the process of its model, is away."""


class TritonModel:
    """One model of a Triton server. Belongs to one event loop."""

    def __init__(self, family: Family, config: TritonConfig) -> None:
        """Call one model of a server.

        Args:
            family: whose tokens are sent; no member needs to be loaded.
            config: where the server is.
        """
        self.name = config.model or family.spec.name
        self.url = config.url
        self.counters = Calls()
        self._config = config
        self._identity = identity(family)
        self._of_tokens = family.spec.of_tokens
        self._channels = Channels(config)
        self._served: _Served | None = None
        self._process_died = False
        self._why = "it was not reached yet"
        self._liveness = Liveness(self._probe, config.wait_s)

    async def predict(
        self,
        texts: Sequence[np.ndarray],
        *,
        max_num_instances: int | None = None,
        isolation_key: str | None = None,
        deadline_s: float | None = None,
    ) -> list[Outcome]:
        """The outcome of each text, in order.

        Args:
            texts: [length] token ids of each.
            max_num_instances: widest N that may answer.
            isolation_key: texts with different keys never share a group.
            deadline_s: on ``time.monotonic()``'s clock.
        """
        parameters: dict[str, Any] = {}
        if max_num_instances is not None:
            parameters["max_num_instances"] = max_num_instances
        if isolation_key is not None:
            parameters["isolation_key"] = isolation_key
        try:
            served = await self._some_server(len(texts))
        except MuxserveError as error:
            return [error] * len(texts)
        size = max(1, served.max_batch_size)
        parts = await asyncio.gather(
            *(
                self._part(texts[start : start + size], parameters, deadline_s)
                for start in range(0, len(texts), size)
            )
        )
        return [outcome for part in parts for outcome in part]

    async def ready(self) -> bool:
        """Whether the model would answer now."""
        if await self._probe() and await self._model_process_lives():
            return True
        self._lose()
        return False

    async def _model_process_lives(self) -> bool:
        """Triton calls a model ready whose process has died; so, after such a failure, ask it."""
        if self._process_died and self._served is not None:
            try:
                await self._infer(self._served, [np.array([self._served.pad_id + 1])], {}, None)
            except (_Unreachable, MuxserveError):
                return False
        return True

    async def stats(self) -> dict[str, Any]:
        """Counters of the model in Triton, and of this client."""
        counters: dict[str, Any] = {
            "backend": "triton",
            "url": self.url,
            "model": self.name,
            "ready": self._liveness.alive,
            "calls": self.counters.calls,
            "texts_sent": self.counters.texts,
            "retried": self.counters.retried,
            "refused": self.counters.refused,
            "unreachable": self.counters.unreachable,
        }
        try:
            with self._channels.client() as client:
                found = await client.get_inference_statistics(
                    self.name, client_timeout=_PROBE_TIMEOUT_S
                )
        except InferenceServerException as error:
            return {**counters, "ready": False, "reason": error.message()}
        (model,) = found.model_stats
        times = model.inference_stats
        return {
            **counters,
            "texts": model.inference_count,
            "batches": model.execution_count,
            "failed": times.fail.count,
            "waiting_s": times.queue.ns / 1e9,
            "forward_s": times.compute_infer.ns / 1e9,
        }

    async def close(self) -> None:
        """End the connection."""
        self._liveness.close()
        await self._channels.close()

    async def _part(
        self, texts: Sequence[np.ndarray], parameters: dict[str, Any], deadline_s: float | None
    ) -> list[Outcome]:
        """Outcomes of as many texts as Triton takes at once; where it fails, of each half."""
        try:
            return await self._call(texts, parameters, deadline_s)
        except (InvalidInput, ForwardFailed) as error:
            if len(texts) == 1:
                return [error]
            middle = len(texts) // 2
            halves = await asyncio.gather(
                self._part(texts[:middle], parameters, deadline_s),
                self._part(texts[middle:], parameters, deadline_s),
            )
            return [outcome for half in halves for outcome in half]
        except MuxserveError as error:
            return [error] * len(texts)

    async def _call(
        self, texts: Sequence[np.ndarray], parameters: dict[str, Any], deadline_s: float | None
    ) -> list[Outcome]:
        for attempt in range(_ATTEMPTS):
            served = await self._some_server(len(texts))
            self.counters.retried += attempt > 0
            try:
                return await self._infer(served, texts, parameters, deadline_s)
            except _Unreachable as error:
                log.warning("a call of Triton at %s failed: %s", self.url, error)
                self._lose(str(error))
        self.counters.unreachable += len(texts)
        raise NotReady(
            f"Triton at {self.url} failed twice over these texts ({self._why}); try again later"
        )

    async def _infer(
        self,
        served: _Served,
        texts: Sequence[np.ndarray],
        parameters: dict[str, Any],
        deadline_s: float | None,
    ) -> list[Outcome]:
        """One call.

        Raises:
            _Unreachable: it may be sent again.
            MuxserveError: else.
        """
        ids = np.full((len(texts), max(map(len, texts))), served.pad_id, dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
        array = InferInput("input_ids", ids.shape, "INT64")
        array.set_data_from_numpy(ids)
        wanted = [name for name in ("logits", "num_instances") if name in served.outputs]
        left_s = self._config.call_timeout_s
        if deadline_s is not None:
            left_s = min(left_s, deadline_s - time.monotonic())
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed while the text waited")
        self.counters.calls += 1
        self.counters.texts += len(texts)
        try:
            with self._channels.client() as client:
                result = await client.infer(
                    self.name,
                    [array],
                    outputs=[InferRequestedOutput(name) for name in wanted],
                    client_timeout=left_s,
                    # When it is over, the call is cancelled, and Triton drops it from its queue.
                    parameters=parameters or None,
                )
        except InferenceServerException as error:
            raise await self._meaning(error, deadline_s) from error
        self._process_died = False
        logits = result.as_numpy("logits")
        widths = [[served.fixed_width]] * len(texts)
        if "num_instances" in served.outputs:
            widths = result.as_numpy("num_instances").tolist()
        return [
            Prediction(row[: len(text)] if self._of_tokens else row, int(n or 0))
            for text, row, (n,) in zip(texts, logits, widths, strict=True)
        ]

    async def _meaning(
        self, error: InferenceServerException, deadline_s: float | None
    ) -> Exception:
        """An error of a call, as the caller gets it."""
        status = str(error.status()).removeprefix("StatusCode.")
        message = error.message()
        if deadline_s is not None and time.monotonic() >= deadline_s - _CLOCK_S:
            return DeadlineExceeded("the deadline passed before the answer was there")
        if status == "UNAVAILABLE" and await self._probe():
            # It is there and took no more: too many texts wait.
            self.counters.refused += 1
            return Overloaded(f"Triton refused the texts ({message}); try again later")
        # "Stub process" is what Triton calls the process of a Python model.
        self._process_died = "tub process" in message
        if status in ("UNAVAILABLE", "NOT_FOUND") or self._process_died:
            return _Unreachable(message)
        if status == "DEADLINE_EXCEEDED":
            self._lose(message)
            return NotReady(
                f"Triton gave no answer within {self._config.call_timeout_s:g} s; try again later"
            )
        if status == "INVALID_ARGUMENT":
            return InvalidInput(f"Triton refused the text: {message}")
        return ForwardFailed(f"Triton failed for this text: {message}")

    def _lose(self, why: str | None = None) -> None:
        """Until it answers again, it is not known whether the server is alive."""
        self._liveness.lost()
        self._why = why or self._why
        self._liveness.look()

    async def _some_server(self, texts: int) -> _Served:
        """What the server says of the model; waits for one that is away, but not without end."""
        if not await self._liveness.wait():
            self.counters.unreachable += texts
            raise NotReady(
                f"the model {self.name} of Triton at {self.url} is not ready ({self._why}); "
                "try again later"
            )
        assert self._served is not None  # known before it is called alive
        return self._served

    async def _probe(self) -> bool:
        """Whether the model is ready and of this family; notes what it is."""
        try:
            with self._channels.client() as client:
                if not await client.is_model_ready(self.name, client_timeout=_PROBE_TIMEOUT_S):
                    self._why = "Triton has no such model, or it is still loading"
                    return False
                if not self._liveness.alive:
                    answer = await client.get_model_config(
                        self.name, client_timeout=_PROBE_TIMEOUT_S
                    )
                    self._served = self._read(answer.config)
                    self._liveness.found()
                    log.info("the model %s of Triton at %s is ready", self.name, self.url)
        except InferenceServerException as error:
            self._why = error.message()
            return False
        except ValueError as error:
            if self._why != str(error):
                log.error("%s", error)
            self._why = str(error)
            return False
        return True

    def _read(self, config: Any) -> _Served:
        """What a model's config says; ValueError where it is not of this family."""
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        if (wrong := difference(self._identity, parameters)) is not None:
            raise ValueError(f"the model {self.name} is not of this family: {wrong}")
        widths = parameters["num_instances"].split(",")
        return _Served(
            int(parameters["pad_id"]),
            int(config.max_batch_size),
            int(widths[0]) if len(widths) == 1 else None,
            frozenset(one.name for one in config.output),
        )
