"""What does not fit on a cluster's nodes is named, with what is there."""

import pytest

from muxserve.serving.config import ServeConfig
from muxserve.serving.ray.placement import needs, shortfall


def missing(nodes: list[dict[str, float]], **settings) -> str | None:
    names = {key.replace("__", "."): value for key, value in settings.items()}
    return shortfall(needs(ServeConfig(family="sentiment", **names)), nodes)


@pytest.mark.parametrize("arrangement", ["separate", "together"])
def test_what_fits_lacks_nothing(arrangement):
    assert missing([{"CPU": 2}], arrangement=arrangement) is None
    assert (
        missing([{"CPU": 1}, {"CPU": 1}], arrangement=arrangement, replicas__num_replicas=2) is None
    )
    assert missing([{"CPU": 0.3}], replicas__num_replicas=3, replicas__num_cpus=0.1) is None


@pytest.mark.parametrize("arrangement", ["separate", "together"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replicas__num_gpus": 1}, "replicas.num_gpus=1: no node has so many"),
        ({"replicas__num_cpus": 64}, "replicas.num_cpus=64: no node has so many"),
        ({"replicas__num_replicas": 5}, "5 x replicas 1 CPU are asked for, the cluster has 4 CPU"),
        ({"replicas__min_replicas": 5, "replicas__max_replicas": 9}, "5 x replicas 1 CPU"),
        (
            {"replicas__num_replicas": 3, "replicas__max_replicas_per_node": 1},
            "3 processes, at most 1 on each node, and there are 2 nodes",
        ),
    ],
)
def test_what_does_not_fit_is_named(arrangement, settings, said):
    nodes = [{"CPU": 2.0}, {"CPU": 2.0, "memory": 1e9}]
    assert said in str(missing(nodes, arrangement=arrangement, **settings))


def test_an_ingress_counts_beside_the_replicas():
    assert "1 x replicas 1 and 1 x ingress 1 CPU" in str(missing([{"CPU": 1}], ingress__num_cpus=1))


def test_replicas_that_start_at_zero_need_nothing():
    none = {"replicas__min_replicas": 0, "replicas__max_replicas": 1, "replicas__num_gpus": 1}
    assert missing([{"CPU": 1}], **none) is not None, "the first one starts"
