"""The serving benchmark's page from load tests' reports; every figure here is made up."""

import pytest

from benchmarks.serving import as_markdown, from_load_tests, plot, summary

SATURATE = {"shape": "saturate", "seconds": 12.0, "warm_up_s": 2.0}
BURST = {"shape": "burst", "rate_per_s": 50.0, "factor": 10.0, "steady_s": 15.0, "burst_s": 30.0}


def load(shape, rate=0.0, p50=5.0, **changes):
    point = {"at_s": 0, "due_per_s": 50.0, "p50_ms": 5.0, "p99_ms": 9.0, "occupancy": 0.9,
             "mean_num_instances": 2.0, "measured_quality": 0.8}  # fmt: skip
    return {
        "shape": shape, "requests": 100, "errors": {}, "texts_per_s": rate, "p50_ms": p50,
        "p99_ms": 4 * p50, "mean_num_instances": 1.0, "measured_quality": 0.8,
        "server_cpu_s_per_1000_texts": 3.0, "generator_cpu_s_per_1000_texts": 0.1,
        "stages_ms": {"ingress": 0.1, "forward": 2.5}, "timeline": [point], **changes,
    }  # fmt: skip


def server(name, *loads, own_load=False, **spec):
    spec = {"num_instances": None, "peer": None, "requests": None, "settings": [], **spec}
    return {
        "name": name,
        "spec": {**spec, "load": [one["shape"] for one in loads] if own_load else []},
        "loads": list(loads),
    }


def both(name, rate, **spec):
    loads = [load({**SATURATE, "clients": n}, rate * n / 256) for n in (64, 256)]
    return server(name, *loads, **spec)


@pytest.fixture
def report():
    """What serving.yaml gives, where one peer does not start."""
    alone, most = ({**SATURATE, "clients": n} for n in (1, 256))
    target = {"settings": ["engine.latency_target_ms=250"], "own_load": True}
    failed = {**server("mosec", peer="mosec"), "failed": "mosec ended with 1\nno such module"}
    served = {
        "scenario": {"settings": ["a=b"], "proxy": "none", "load": [SATURATE]},
        "environment": {"processor": "P", "cores": "2", "torch": "T", "ray": "R", "date": "D"},
        "measured_quality": {"1": 0.9, "2": 0.8},
        "servers": [
            *(both(f"N={n}", 100.0 * n, num_instances=n) for n in (1, 2, 5, 10)),
            both("elastic", 900.0),
            server("lone client", load(alone, p50=4.0), own_load=True),
            server("empty requests", load(alone, p50=1.0), own_load=True, requests="ready"),
            server("torch, N=1", load(most, 80.0), own_load=True, num_instances=1),
            server("burst, elastic", load(BURST, errors={"503": 3}), **target),
            server("burst, N=1", load(BURST, errors={"503": 60}), num_instances=1, **target),
            both("litserve", 50.0, peer="litserve"),
            failed,
        ],
    }
    offline = {str(n): {"texts_per_s": 200.0 * n, "groups": 4, "loops": 1} for n in (1, 2, 5, 10)}
    ceiling = {"dtype": "float32", "offline": offline, "bare_forward_p50_ms": 3.0}
    return from_load_tests({"shipped": served}, {"families": {"shipped": ceiling}})


def test_the_summary_has_the_figures_by_their_names(report):
    flat = summary(report)
    assert flat["shipped.gain_over_n1.10"] == 10
    assert flat["shipped.gain_over_n1.elastic.at_64_clients"] == 9
    assert flat["shipped.gain_over_best_peer.1"] == 2
    assert flat["shipped.served_over_offline.5"] == 0.5
    assert flat["shipped.n1_p99_over_best_peer"] == 1
    assert flat["shipped.lone_p50_over_floor"] == 1
    assert flat["burst.elastic.shed"] == 3
    assert flat["burst.fixed1.shed"] == 60
    assert flat["burst.elastic.accuracy_price"] == pytest.approx(0.1)
    assert flat["burst.target_ms"] == 250


def test_the_tables_have_every_server(report):
    page = as_markdown(report)
    assert "| muxserve N=10 | 1000 | 10.00 | 0.50 | 5 | 20 | 0 | 3.00 | 0.10 |" in page
    assert "| mosec | no such module |" in page
    assert "| torch, N=1 | 80 | 0.80 | 5 | 20 | 3.00 |" in page
    assert "| torch, N=1 | 0.1 | 2.5 |" in page
    assert "a lone client: p50 4.0 ms; bare forward 3.0 ms and an empty request 1.0 ms" in page
    assert "a burst of 10x for 30 s over 50 texts/s, target 250 ms" in page
    assert "| N=1 pinned | 100 | 60 | 5 | 20 | 1.0 | 10.0 points |" in page


def test_the_figure_is_drawn(report, tmp_path):
    plot(report, tmp_path / "serving.svg")
    assert (tmp_path / "serving.svg").stat().st_size > 1000
