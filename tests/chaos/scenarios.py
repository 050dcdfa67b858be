"""Every scenario: what it breaks, on which server, and what is guaranteed."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.chaos import fuzz, of_clients, of_clusters, of_replicas
from tests.chaos.harness import Scale, Server

Run = Callable[[Server, Scale], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Scenario:
    """One failure.

    Attributes:
        name: name for --only.
        what: what happens, for the table.
        promise: what clients see that are not at fault.
        run: breaks the server under load, checks every answer and returns figures.
        place: starts the server; scenarios with the same place share it.
    """

    name: str
    what: str
    promise: str
    run: Run
    place: Callable[[], AbstractContextManager[Server]]


_RETRY = "right answers; 503 to try again while there is no room"
_LATE = "right answers, 503, or 504 at the deadline"
_NONE = "right answers only"

SCENARIOS = (
    Scenario(
        "replica-killed",
        "one of two replicas gets SIGKILL",
        _RETRY,
        of_replicas.replica_killed,
        of_replicas.two_replicas,
    ),
    Scenario(
        "replica-stopped",
        "one of two replicas is stopped (SIGSTOP) for 15 s",
        _LATE,
        of_replicas.replica_stopped,
        of_replicas.two_replicas,
    ),
    Scenario(
        "forward-hangs",
        "a forward of one of two replicas never ends",
        f"{_LATE}; the replica is replaced",
        of_replicas.forward_hangs,
        of_replicas.two_replicas,
    ),
    Scenario(
        "poisoned-input",
        "texts that no forward survives come among the others",
        "500 `forward_failed` for these, right answers for the others",
        of_replicas.poisoned_input,
        of_replicas.two_replicas,
    ),
    Scenario(
        "gpu-memory",
        "forwards of more than two rows are out of GPU memory (simulated)",
        _NONE,
        of_replicas.gpu_out_of_memory,
        of_replicas.two_replicas,
    ),
    Scenario(
        "gpu-broken",
        "every forward of every replica fails (simulated)",
        f"{_LATE}; all replicas are replaced",
        of_replicas.gpu_broken,
        of_replicas.two_replicas,
    ),
    Scenario(
        "ingress-killed",
        "the only ingress gets SIGKILL",
        "its connections end, and none is taken until another runs; then right answers",
        of_replicas.ingress_killed,
        of_replicas.two_replicas,
    ),
    Scenario(
        "node-removed",
        "one of two nodes with a replica each goes",
        _RETRY,
        of_clusters.node_removed,
        of_clusters.two_nodes,
    ),
    Scenario(
        "rolling-update",
        "changed settings under load, two of everything, behind Ray Serve's proxy",
        _NONE,
        of_clusters.rolling_update,
        of_clusters.updatable,
    ),
    Scenario(
        "update-in-place",
        "another number of replicas under load",
        _NONE,
        of_clusters.update_in_place,
        of_clusters.updatable,
    ),
    Scenario(
        "gone",
        "clients close their connection in the middle",
        _NONE,
        of_clients.clients_go,
        of_clients.one_replica,
    ),
    Scenario(
        "slow-readers",
        "clients never read their answers",
        _NONE,
        of_clients.clients_read_slowly,
        of_clients.one_replica,
    ),
    Scenario(
        "slow-senders",
        "clients send a byte of a head or a body per second",
        "408 or 504 for these, right answers for the others",
        of_clients.clients_send_slowly,
        of_clients.one_replica,
    ),
    Scenario(
        "connections",
        "20,000 silent connections, or as many as descriptors allow",
        "right answers; connections that ask nothing may be closed",
        of_clients.silent_connections,
        of_clients.one_replica,
    ),
    Scenario(
        "zeros",
        "2 MB of zeros for texts, four clients at once",
        "4xx for these, right answers for the others",
        of_clients.megabytes_of_zeros,
        of_clients.one_replica,
    ),
    Scenario(
        "million-words",
        "a text of a million words, four clients at once",
        "413 for these, right answers for the others",
        of_clients.a_million_words,
        of_clients.one_replica,
    ),
    Scenario(
        "flood",
        "12 connections of one address with 512 texts each at N=1",
        "503 for these, right answers for the others",
        of_clients.flood,
        of_clients.one_replica,
    ),
    Scenario(
        "fuzz-openapi",
        "requests that schemathesis makes from the OpenAPI document, right ones and wrong ones",
        "documented codes only, no 500; right answers afterwards",
        fuzz.openapi,
        of_clients.one_replica,
    ),
    Scenario(
        "fuzz-v2",
        "bodies of `/v2/models/.../infer` that are nearly right",
        "documented codes only, no 500; right answers afterwards",
        fuzz.infer,
        of_clients.one_replica,
    ),
    Scenario(
        "fuzz-grpc",
        "messages of `ModelInfer` that are nearly right",
        "documented codes only, no 500; right answers afterwards",
        fuzz.over_grpc,
        of_clients.one_replica,
    ),
)
