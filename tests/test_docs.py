"""What the docs say of settings and errors is what the code says."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from benchmarks.serving import as_markdown, summary
from muxserve.errors import MuxserveError
from muxserve.models.family import read_spec, resolve
from muxserve.serving import errors as _http_errors  # noqa: F401 - defines more errors
from muxserve.serving.config import ServeConfig
from muxserve.serving.metrics import SERIES
from muxserve.serving.protocols.schemas import PredictRequest
from tests.monitoring.checks import anchors

ROOT = Path(__file__).parents[1]
SERVING = (ROOT / "docs" / "serving.md").read_text()
MODELS = (ROOT / "docs" / "models.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("k8s/*.md")]


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else field.default
            yield f"| `{prefix}{name}` | {default} | {field.description} |"


def errors(kind: type[MuxserveError] = MuxserveError) -> Iterator[type[MuxserveError]]:
    for one in kind.__subclasses__():
        yield one
        yield from errors(one)


def test_the_table_of_settings_is_the_one_of_the_code():
    rows = [line for line in SERVING.split("## Settings")[1].splitlines() if line.startswith("| `")]
    assert rows == list(settings(ServeConfig))


@pytest.mark.parametrize("error", sorted(errors(), key=lambda one: one.code), ids=lambda e: e.code)
def test_every_error_code_is_documented_with_its_status(error):
    if error.code == "bad_family":
        return  # at start, not over HTTP
    lines = [line for line in SERVING.splitlines() if f"`{error.code}`" in line]
    assert any(str(error.status) in line.split("|")[1] for line in lines), error.code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        if path.startswith("https:"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_every_field_of_predict_is_documented():
    for name in PredictRequest.model_fields:
        assert f"| `{name}` |" in SERVING, name


@pytest.mark.parametrize("family", ["part-of-speech", "sentiment"])
def test_the_quality_tables_are_the_measured_figures(family):
    spec = read_spec(resolve(family))
    card = ROOT / "muxserve" / "families" / family / "README.md"
    for page in (ROOT / "README.md", ROOT / "docs" / "training.md", card):
        text = page.read_text()
        for member in spec.members:
            assert member.quality is not None
            assert member.flip_rate is not None
            row = (
                f"| {member.num_instances} | {100 * member.quality.value:.1f} ± "
                f"{100 * member.quality.std:.1f} % | {100 * member.flip_rate:.1f} % |"
            )
            assert row in text, f"{page.name} lacks {row}"


@pytest.mark.parametrize(("name", "count"), [("forward", 20), ("forward-bfloat16", 20)])
def test_the_tables_of_forwards_are_the_committed_runs(name, count):
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    assert len(rows) == count
    for row in rows:
        n = "plain" if row["network"] == "plain" else row["num_instances"]
        line = (
            f"| {row['size']} | {row['length']} | {n} | {row['texts_per_s']:,.0f} | "
            f"{row['gain_over_plain']:.2f} | {row['flops_per_s'] / 1e9:,.0f} |"
        )
        assert line in MODELS


def test_the_table_of_runtimes_is_the_committed_run():
    rows = json.loads((ROOT / "benchmarks" / "results" / "runtimes.json").read_text())["rows"]
    table = runpy.run_path(str(ROOT / "benchmarks" / "runtimes.py"))["table"]
    assert table(rows) in (ROOT / "docs" / "engine.md").read_text()


def test_the_example_of_a_model_runs():
    (snippet,) = re.findall(r"<!-- test: models -->\n```python\n(.*?)```", MODELS, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([10, 16, 9])\n"


def test_the_benchmark_of_a_forward_runs_without_ray(tmp_path):
    """At one small size, for one repeat: that it runs, not what it measures."""
    hide_ray = "import sys; sys.modules['ray'] = None; import runpy; "
    script = f"{hide_ray} runpy.run_path('benchmarks/forward.py', run_name='__main__')"
    out = tmp_path / "forward.json"
    options = ["--sizes", "shipped", "--lengths", "16", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", script, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["num_instances"] for row in rows] == [1, 1, 2, 5, 10]
    assert all(row["texts_per_s"] > 0 and row["flops_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_every_series_of_metrics_is_documented(series):
    assert f"| `{series.name}` | {series.help} |" in SERVING


def test_the_tables_of_the_serving_benchmark_are_those_of_its_results():
    report = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
    assert as_markdown(report) in (ROOT / "docs" / "benchmarks.md").read_text()


def test_every_figure_of_the_summary_comes_from_the_run_that_wrote_it():
    report = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
    assert report["summary"] == pytest.approx(summary(report), nan_ok=True)
    wanted = {f"{size}.gain_over_n1.{n}" for size in ("base", "shipped") for n in (2, 5, 10)}
    for size in ("base", "shipped"):
        for n in (1, 2, 5, 10):
            wanted |= {f"{size}.gain_over_best_peer.{n}", f"{size}.served_over_offline.{n}"}
    wanted |= {
        f"burst.{key}.{name}" for key in ("elastic", "fixed1") for name in ("p99_ms", "shed")
    }
    assert wanted | {"shipped.lone_p50_over_floor"} <= report["summary"].keys()


def test_the_table_of_a_flood_is_what_was_measured():
    measured = json.loads((ROOT / "benchmarks/results/fairness.json").read_text())
    table = runpy.run_path(str(ROOT / "benchmarks/fairness.py"))["as_markdown"](measured)
    assert table in (ROOT / "docs/security.md").read_text()
