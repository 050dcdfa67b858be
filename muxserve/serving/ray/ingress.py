"""A Ray deployment that speaks HTTP and Python handles: texts in, labels and scores out.

It tokenizes and hands token ids to a backend: replicas behind a handle, or the engine of its own
process. It never runs a forward on its event loop.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from muxserve.engine.tokens import TextEncoder, Truncate
from muxserve.models.family import Family
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.access.keys import Keyring, narrowest
from muxserve.serving.backend import Backend, LocalBackend, counters
from muxserve.serving.bundling import BundlingBackend
from muxserve.serving.config import ServeConfig
from muxserve.serving.listening.listener import Listener
from muxserve.serving.listening.ports import PortClaim
from muxserve.serving.protocols.answers import AnswerEntry, entries
from muxserve.serving.protocols.http import create_app
from muxserve.serving.protocols.schemas import ScoreFunction, check_texts
from muxserve.serving.ray.calls import ReplicaCalls
from muxserve.serving.ray.cycle_collector import collect_rarely
from muxserve.serving.ray.metrics import RayMetrics
from muxserve.serving.ray.replica import load_engine, log_through_ray
from muxserve.serving.service import TextService

if TYPE_CHECKING:
    from muxserve.serving.protocols.oip_grpc import GrpcListener


@serve.ingress()
class MuxIngress:
    """The entrance of an application."""

    def __init__(
        self, config: ServeConfig, replicas: "DeploymentHandle[Any] | None" = None
    ) -> None:
        """Load what answers, and claim the ports.

        Args:
            config: the application's settings.
            replicas: the engines; without, one is loaded here.
        """
        log_through_ray()
        # Ray's own server in this process, behind HAProxy, would believe any X-Forwarded-For.
        os.environ["FORWARDED_ALLOW_IPS"] = ""
        self._claims = [
            PortClaim(config.ingress.direct_host, port, _owner(), f"ingress.{name}")
            for name in ("direct_port", "grpc_port")
            if (port := getattr(config.ingress, name)) is not None
        ]
        self._listener: Listener | None = None
        if config.ingress.direct_port is not None:
            self._listener = Listener(
                config.ingress.direct_host, config.ingress.direct_port, config.connections
            )
        self._grpc: GrpcListener | None = None
        self._ingress, self._connections = config.ingress, config.connections
        self._engine = None
        self._local: LocalBackend | None = None
        backend: Backend
        verify = config.engine.verify_checksums
        if config.backend == "triton":
            from muxserve.serving.triton_replicas import TritonReplicas  # needs the extra 'triton'

            family = Family.load(config.family, widths=[], verify_checksums=verify)
            backend = BundlingBackend(TritonReplicas(family, config.triton), config.ingress)
        elif replicas is None:
            self._engine = load_engine(config.family, config.engine)
            family = self._engine.family
            backend = self._local = LocalBackend(self._engine)
        else:
            # No member is loaded: an ingress needs the labels and the tokenizer.
            family = Family.load(config.family, widths=[], verify_checksums=verify)
            calls = ReplicaCalls(replicas, config.ingress.replica_wait_s)
            widest = max(member.num_instances for member in family.spec.members)
            backend = BundlingBackend(calls, config.ingress, widest)
        encoder = TextEncoder.of_family(family)
        self._service = TextService(
            family.spec, encoder, backend, config.limits, config.ingress.max_waiting_texts
        )
        self._cors_origins = config.security.cors_origins
        self._keyring: Keyring | None = None
        if config.security.keys_file is not None:
            fewest = narrowest(family.spec, config)
            self._keyring = Keyring(config.security.keys_file, config.limits, fewest)
            self._keyring.start()
        self._authenticator = Authenticator(config.security, self._keyring)
        RayMetrics(self._stats_here)
        collect_rarely()

    def _stats_here(self) -> tuple[Mapping[str, Any], bool | None]:
        """Counters of this process; the engines behind it have their own."""
        own = self._service.own_stats()
        if self._engine is None:
            return own, None
        return {"engines": [counters(self._engine)], **own}, self._engine.alive

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray once the constructor is through."""
        app = create_app(self._service, self._authenticator, self._cors_origins)
        if self._listener is not None:
            self._listener.start(app)
        if self._ingress.grpc_port is not None:
            from muxserve.serving.protocols.oip_grpc import GrpcListener  # needs the extra 'triton'

            host, port = self._ingress.direct_host, self._ingress.grpc_port
            self._grpc = GrpcListener(
                self._service, host, port, self._connections, self._authenticator
            )
        return app

    async def __del__(self) -> None:
        """Called by Ray before it ends this process."""
        if self._grpc is not None:
            await self._grpc.stop()
        if self._listener is not None:
            await self._listener.stop()
        if self._keyring is not None:
            self._keyring.close()

    async def classify(
        self,
        texts: str | list[str],
        *,
        truncate: Truncate = True,
        raw_scores: bool = False,
        max_num_instances: int | None = None,
        isolation_key: str | None = None,
        timeout_s: float | None = None,
    ) -> list[AnswerEntry] | list[list[AnswerEntry]]:
        """Classify through a handle: ``serve.get_app_handle("default").classify.remote([...])``.

        Returns:
            Entries with label, score and num_instances: of a text best first; of words in order,
            with word, start and end. A list of them for one text, and a list of such lists for a
            list of texts.

        Raises:
            MuxserveError: as ``POST /predict`` answers, with the same codes.
        """
        with self._service.fates.call():
            checked = check_texts(texts, self._service.limits.max_texts_per_request)
            answered = await self._service.classify(
                [checked] if isinstance(checked, str) else checked,
                truncate=truncate,
                max_num_instances=max_num_instances,
                isolation_key=isolation_key,
                timeout_s=timeout_s,
            )
            function: ScoreFunction | None = "none" if raw_scores else None
            answers = entries(answered, self._service.spec, function)
            return answers[0] if isinstance(checked, str) else answers

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What came since the last call, where the engine is here; Ray's policy asks for it."""
        return {} if self._local is None else self._local.demand()

    async def check_health(self) -> None:
        """Raise where a forward thread of this process has ended or hangs; Ray replaces it."""
        if self._engine is not None:
            self._engine.check_health()


def _owner() -> str:
    """A name of this application that no other on this machine has."""
    cluster = ray.get_runtime_context().gcs_address
    try:
        return f"application {serve.get_replica_context().app_name!r} of the Ray at {cluster}"
    except RayServeException:  # held by a program of its own, outside of Ray Serve
        return f"process {os.getpid()} with the Ray at {cluster}"
