"""A scenario from its first server to its last: out comes everything that the report shows.

What was measured before a server died, or before Ctrl-C, stays in the report, and the report says
what is missing.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from muxserve.bench.machine import describe
from muxserve.loadtest.alone import ask_alone
from muxserve.loadtest.figures import figures
from muxserve.loadtest.generator import Generator, GeneratorFailed
from muxserve.loadtest.job import Job
from muxserve.loadtest.scenario import Scenario, ServerSpec
from muxserve.loadtest.search import highest_rate
from muxserve.loadtest.shapes import Constant, Search, Shape
from muxserve.loadtest.tally import OK, Tally, quantile_s
from muxserve.loadtest.targets import Target, TargetFailed, model_name, open_target
from muxserve.loadtest.texts import Text, load_texts, write_texts
from muxserve.loadtest.verdict import verdict
from muxserve.loadtest.watch import Watch

_POLL_S = 0.5
#: A server that answers nothing but broken connections for so long has died.
DEAD_S = 5
#: Beyond its last request and the time limit of that, a run is ended.
_GRACE_S = 20.0
_ALONE_LIMIT_S = 30.0


@dataclass(frozen=True)
class Progress:
    """Where a run is: seconds of load that are over, and what goes on."""

    done_s: float
    total_s: float
    what: str
    detail: str = ""


@dataclass
class Runner:
    """Runs one scenario.

    Attributes:
        scenario: which.
        on_progress: called at each step, twice a second under load.
        web_port: of Locust's web UI, if wanted.
    """

    scenario: Scenario
    on_progress: Callable[[Progress], None]
    web_port: int | None = None
    report: dict[str, Any] = field(default_factory=dict)
    _done_s: float = 0.0

    def run(self) -> dict[str, Any]:
        """Every server, every load. ``report['status']`` says how it ended.

        ``complete``, ``interrupted`` (Ctrl-C), or ``incomplete``: a server did not start, died, or
        answered nothing.
        """
        scenario = self.scenario
        self.report = {
            "scenario": scenario.model_dump(mode="json"),
            "environment": {**describe(), "locust": version("locust")},
            "started_unix_s": time.time(),
            "servers": [],
            "status": "complete",
            "problems": [],
        }
        try:
            quality, vocabulary = _family(scenario)
            texts = load_texts(scenario.texts, scenario.seed, vocabulary)
            self.report["measured_quality"] = {str(n): value for n, value in quality.items()}
            self.report["texts"] = {
                "count": len(texts),
                "labelled": sum(one.label is not None for one in texts),
                "mean_words": sum(len(one.text.split()) for one in texts) / len(texts),
            }
            for spec in scenario.servers:
                self._server(spec, texts, quality)
        except KeyboardInterrupt:
            self.report["status"] = "interrupted"
            self.report["problems"].append("Ctrl-C: what was measured until then is shown")
        for server in self.report["servers"]:
            for load in server["loads"]:
                if load["requests"] and not load["answered"]:
                    errors = ", ".join(f"{k} x {v}" for k, v in load["errors"].items())
                    self._problem(
                        f"{server['name']}, {load['shape']['shape']}: no request was answered "
                        f"({errors or 'all still under way'}){_first_example(load)}"
                    )
        self.report["seconds"] = time.time() - self.report["started_unix_s"]
        self.report["verdict"] = verdict(self.report)
        return self.report

    def _problem(self, message: str) -> None:
        self.report["problems"].append(message)
        if self.report["status"] == "complete":
            self.report["status"] = "incomplete"

    def _tell(self, what: str, detail: str = "", within_s: float = 0.0) -> None:
        done = min(self._done_s + within_s, self.scenario.load_s)
        self.on_progress(Progress(done, self.scenario.load_s, what, detail))

    def _server(self, spec: ServerSpec, texts: list[Text], quality: Mapping[int, float]) -> None:
        scenario = self.scenario
        entry: dict[str, Any] = {"name": spec.name, "spec": spec.model_dump(), "loads": []}
        self.report["servers"].append(entry)
        own_s = sum(one.duration_s for one in scenario.load)
        end_s = self._done_s + own_s
        self._tell(f"{spec.name}: {'looking for it' if spec.url else 'starting'}")
        try:
            with open_target(spec, scenario) as target:
                if target.ask_url is not None and any(one.alone is None for one in texts):
                    self._tell(f"{spec.name}: asking for N=1's answers")
                    ask_alone(texts, target.ask_url, _ALONE_LIMIT_S)
                with tempfile.TemporaryDirectory(prefix="muxload") as folder:
                    for shape in scenario.load:
                        self._load(entry, target, shape, texts, Path(folder), quality)
        except (TargetFailed, GeneratorFailed) as error:
            entry["failed"] = str(error)
            self._problem(str(error))
        self._done_s = end_s

    def _load(
        self,
        entry: dict[str, Any],
        target: Target,
        shape: Shape,
        texts: list[Text],
        folder: Path,
        quality: Mapping[int, float],
    ) -> None:
        known = _with_rate(shape, entry, self.report["servers"][0])
        if isinstance(known, Search):
            steps: list[dict[str, Any]] = []

            def probe(rate: float) -> dict[str, Any]:
                step = Constant(
                    shape="constant",
                    rate_per_s=rate,
                    seconds=known.step_s,
                    warm_up_s=min(known.warm_up_s, known.step_s / 3),
                )
                one = self._once(entry, target, step, texts, folder, quality)
                steps.append(one)
                return one

            best, tried = highest_rate(known, probe)
            chosen = next((one for one in tried if one["rate_per_s"] == best), tried[0])
            entry["loads"].append(
                {
                    **chosen,
                    "shape": known.model_dump(),
                    "highest_rate_per_s": best,
                    "steps": [{k: v for k, v in one.items() if k != "timeline"} for one in tried],
                }
            )
            return
        row = self._once(entry, target, known, texts, folder, quality)
        entry["loads"].append(row)
        if row.get("died_at_s") is not None:
            raise TargetFailed(
                f"{entry['name']} stopped answering {row['died_at_s']:.0f} s into "
                f"'{known.shape}'; figures are of the time before"
            )

    def _once(
        self,
        entry: dict[str, Any],
        target: Target,
        shape: Shape,
        texts: list[Text],
        folder: Path,
        quality: Mapping[int, float],
    ) -> dict[str, Any]:
        """One shape of load on one server."""
        scenario = self.scenario
        own = Path(tempfile.mkdtemp(dir=folder))
        if target.body is not None:
            texts = [Text(one.text, body=target.body(one.text).decode()) for one in texts]
        write_texts(own / "texts.jsonl", texts)
        oip = scenario.requests.startswith("oip")
        job = Job(
            url=target.url,
            kind=scenario.requests,
            shape=shape,
            texts=own / "texts.jsonl",
            path=target.path,
            model=model_name(scenario) if oip else "",
            texts_per_request=scenario.texts_per_request,
            headers=scenario.headers,
            timeout_s=scenario.timeout_s,
            seed=scenario.seed,
        )
        what = f"{entry['name']}: {shape.shape}"
        died_at_s: float | None = None
        interrupted = False
        generator = Generator(job, own, workers=scenario.workers, web_port=self.web_port)
        with Watch(target.cpu_seconds, target.stats) as watch:
            try:
                with generator:
                    while generator.running:
                        time.sleep(_POLL_S)
                        generator.read()
                        self._tell(what, _so_far(generator.tally, generator.at_s), generator.at_s)
                        if has_died(generator.tally, generator.at_s):
                            died_at_s = last_answer_s(generator.tally)
                            break
                        if generator.at_s > shape.duration_s + scenario.timeout_s + _GRACE_S:
                            raise GeneratorFailed(f"{what} did not end in time")
            except KeyboardInterrupt:
                interrupted = True
        ran_s = shape.duration_s
        if died_at_s is not None:
            ran_s = died_at_s
        elif interrupted:
            ran_s = min(ran_s, generator.at_s)
        start = generator.start_unix_s or time.time()
        row = figures(generator.tally, shape, watch.looks, start, ran_s, quality)
        if died_at_s is not None:
            row["died_at_s"] = died_at_s
        if interrupted:
            row["interrupted_at_s"] = ran_s
            entry["loads"].append(row)
            raise KeyboardInterrupt
        self._done_s += shape.duration_s
        return row


def has_died(tally: Tally, at_s: float) -> bool:
    """Whether a server's last seconds are broken connections and nothing else."""
    recent = tally.total(range(int(at_s) - DEAD_S, int(at_s)))
    broken = recent.statuses["connection"]
    return (
        at_s > DEAD_S and broken >= 3 and broken == recent.statuses.total() and not recent.completed
    )


def last_answer_s(tally: Tally) -> float:
    """The end of the last second in which an answer came."""
    return max((number + 1 for number, one in tally.seconds.items() if one.completed), default=0)


def _so_far(tally: Tally, at_s: float) -> str:
    now = tally.total(range(max(0, int(at_s) - 3), int(at_s)))
    p99 = quantile_s(now.latencies, 0.99)
    rate = now.completed / min(3, max(1, int(at_s)))
    errors = sum(c for s, c in tally.total().statuses.items() if s != OK) if tally.seconds else 0
    return (
        f"{rate:,.0f} texts/s, p99 {1000 * p99:,.0f} ms, {errors} errors"
        if p99
        else "no answer yet"
    )


def _first_example(load: Mapping[str, Any]) -> str:
    for message in load["error_examples"].values():
        if message:
            return f"; the first said: {message[:200]}"
    return ""


def _with_rate(shape: Shape, entry: Mapping[str, Any], baseline: Mapping[str, Any]) -> Shape:
    """A shape whose rate is a share of what was reached, with that rate."""
    for name, server in (("of_capacity", entry), ("of_baseline", baseline)):
        share = getattr(shape, name, None)
        if share is None:
            continue
        reached = [
            one["texts_per_s"] for one in server["loads"] if one["shape"]["shape"] == "saturate"
        ]
        if not reached or not reached[-1]:
            raise TargetFailed(f"'{shape.shape}' needs the rate of 'saturate', which is not known")
        return shape.model_copy(update={name: None, "rate_per_s": max(1.0, share * reached[-1])})
    return shape


def _family(scenario: Scenario) -> tuple[dict[int, float], Callable[[], Any] | None]:
    """Measured quality of each N, and the tokenizer; nothing where only URLs are asked."""
    needed = scenario.texts.source == "generated" or any(
        one.url is None for one in scenario.servers
    )
    from muxserve.models.family import Family, read_spec, resolve

    try:
        folder = resolve(scenario.family)
        spec = read_spec(folder)
    except (OSError, ValueError):
        if needed:
            raise
        return {}, None
    quality = {one.num_instances: one.quality.value for one in spec.members if one.quality}
    finite = {n: value for n, value in quality.items() if math.isfinite(value)}
    return finite, lambda: Family.load(folder, []).tokenizer
