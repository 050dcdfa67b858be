"""Scenarios that start muxserve itself: everything that only a real server can tell."""

import pytest
import yaml

from tests.loadtest.conftest import report_of, run

pytestmark = [pytest.mark.loadtest, pytest.mark.ray]


def scenario_of(folder, family, **changes):
    content = {
        "name": "real",
        "family": str(family),
        "servers": [{"name": "N=1", "num_instances": 1}, {"name": "N=5", "num_instances": 5}],
        "texts": {"count": 400, "words": [2, 8]},
        "load": [{"shape": "saturate", "clients": 32, "seconds": 5, "warm_up_s": 1}],
        **changes,
    }
    file = folder / "real.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_each_n_is_started_loaded_and_compared_with_n1(tiny_family, tmp_path):
    code, output, errors = run(scenario_of(tmp_path, tiny_family), tmp_path / "out")
    assert code == 0, errors
    alone, wide = [one["loads"][0] for one in report_of(tmp_path / "out")["servers"]]
    assert alone["agreement_with_n1"] == 1
    assert 0 <= wide["agreement_with_n1"] <= 1
    for one, n in ((alone, 1), (wide, 5)):
        assert one["errors"] == {}
        assert list(one["texts_by_num_instances"]) == [str(n)]
        assert one["accuracy"] is not None
        assert 0 < one["occupancy"] <= 1
        assert 0 < one["server_cpu_s_per_1000_texts"] < 50
        assert 0 < one["generator_cpu_s_per_1000_texts"] < 50
    assert "times as many texts per second as N=1" in output


def test_a_handle_is_called_without_http(tiny_family, tmp_path):
    changes = {
        "requests": "handle",
        "servers": [{"name": "elastic"}],
        "load": [{"shape": "constant", "rate_per_s": 60, "seconds": 5, "warm_up_s": 1}],
    }
    code, _, errors = run(scenario_of(tmp_path, tiny_family, **changes), tmp_path / "out")
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["answered"] > 150
    assert one["errors"] == {}
    assert one["accuracy"] is not None


def test_a_server_that_does_not_start_leaves_the_others(tiny_family, tmp_path):
    servers = [
        {"name": "wrong", "settings": ["engine.no_such_setting=1"]},
        {"name": "N=1", "num_instances": 1},
    ]
    scenario = scenario_of(tmp_path, tiny_family, servers=servers)
    code, _, errors = run(scenario, tmp_path / "out")
    assert code == 3
    assert "error: wrong: " in errors
    assert "no_such_setting" in errors
    wrong, right = report_of(tmp_path / "out")["servers"]
    assert wrong["loads"] == []
    assert right["loads"][0]["answered"] > 0
