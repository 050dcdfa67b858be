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

from muxserve.loadtest.generator.generator import GeneratorFailed
from muxserve.loadtest.generator.load_spec import Job
from muxserve.loadtest.one_load import run_load
from muxserve.loadtest.report.verdict import verdict
from muxserve.loadtest.scenario.scenario import Scenario, ServerSpec
from muxserve.loadtest.scenario.shapes import Constant, Search, Shape
from muxserve.loadtest.scenario.texts import Text, labels_in, load_texts, write_texts
from muxserve.loadtest.search import highest_rate, passes, search_row
from muxserve.loadtest.servers.reference_labels import ask_alone
from muxserve.loadtest.servers.targets import Target, TargetFailed, model_name, open_target
from muxserve.measure.machine import describe

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
            "scenario": _without_secrets(scenario),
            "environment": {**describe(), "locust": version("locust")},
            "started_unix_s": time.time(),
            "servers": [],
            "status": "complete",
            "problems": [],
            "notes": [],
        }
        try:
            family = _family(scenario)
            tokenizer = None if family is None else family.tokenizer
            labels = _labels(scenario, family)
            texts = load_texts(scenario.texts, scenario.seed, tokenizer, labels)
            quality = family.quality if family else {}
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
            self.report["problems"].append("stopped: what was measured until then is shown")
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

    def _check_labels(self, texts: list[Text]) -> None:
        """Forget labels that a server never gives: another family's accuracy is not 0 %."""
        given = labels_in(one.alone for one in texts)
        wanted = labels_in(one.label for one in texts)
        if given and wanted and not given & wanted:
            for one in texts:
                one.label = None
            self.report["notes"].append(
                f"no accuracy: the server's labels ({', '.join(sorted(given)[:6])}) are none of "
                f"those of the texts ({', '.join(sorted(wanted)[:6])})"
            )

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
                    ask_alone(texts, target.ask_url, _ALONE_LIMIT_S, scenario.headers)
                    self._check_labels(texts)
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
        known = _with_rate(shape, entry, self.report["servers"][0], self.scenario)
        if not isinstance(known, Search):
            self._once(entry, target, known, texts, folder, quality, entry["loads"].append)
            return
        steps: list[dict[str, Any]] = []

        def passes_at(rate: float) -> bool:
            step = Constant(
                shape="constant",
                rate_per_s=rate,
                seconds=known.step_s,
                warm_up_s=min(known.warm_up_s, known.step_s / 3),
            )

            def keep(row: dict[str, Any]) -> None:
                steps.append({**row, "rate_per_s": rate, "passed": passes(known, row)})

            self._once(entry, target, step, texts, folder, quality, keep)
            return bool(steps[-1]["passed"])

        try:
            highest_rate(known, passes_at)
        finally:
            if steps:  # however it ended
                entry["loads"].append(search_row(known, steps))

    def _once(
        self,
        entry: dict[str, Any],
        target: Target,
        shape: Shape,
        texts: list[Text],
        folder: Path,
        quality: Mapping[int, float],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        """One shape of load on one server; ``keep`` gets its row before anything is raised."""
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
        row, cut = run_load(
            what,
            target,
            job,
            own,
            workers=scenario.workers,
            web_port=self.web_port,
            quality=quality,
            tell=lambda detail, at_s: self._tell(what, detail, at_s),
        )
        if row is not None:
            keep(row)
        if cut is not None:
            raise cut
        self._done_s += shape.duration_s


def _first_example(load: Mapping[str, Any]) -> str:
    for message in load["error_examples"].values():
        if message:
            return f"; the first said: {message[:200]}"
    return ""


def _with_rate(
    shape: Shape, entry: Mapping[str, Any], baseline: Mapping[str, Any], scenario: Scenario
) -> Shape:
    """A shape whose rate is a share of what was reached, with that rate in requests."""
    for name, server in (("of_capacity", entry), ("of_baseline", baseline)):
        share = getattr(shape, name, None)
        if share is None:
            continue
        reached = [
            one["texts_per_s"] for one in server["loads"] if one["shape"]["shape"] == "saturate"
        ]
        if not reached or not reached[-1]:
            raise TargetFailed(f"'{shape.shape}' needs the rate of 'saturate', which is not known")
        rate = share * reached[-1] / scenario.texts_of_a_request
        return shape.model_copy(update={name: None, "rate_per_s": max(1.0, rate)})
    return shape


@dataclass(frozen=True)
class _FamilyFacts:
    """What is known of the scenario's family without its weights."""

    labels: list[str]
    quality: dict[int, float]
    folder: Path

    def tokenizer(self) -> Any:
        from muxserve.models.family import Family

        return Family.load(self.folder, []).tokenizer


def _family(scenario: Scenario) -> _FamilyFacts | None:
    """The family's facts; None where only URLs are asked and there is no such family here."""
    needed = scenario.texts.source == "generated" or _starts_one(scenario)
    from muxserve.models.family import read_spec, resolve

    try:
        folder = resolve(scenario.family)
        spec = read_spec(folder)
    except (OSError, ValueError):
        if needed:
            raise
        return None
    quality = {one.num_instances: one.quality.value for one in spec.members if one.quality}
    finite = {n: value for n, value in quality.items() if math.isfinite(value)}
    return _FamilyFacts(list(spec.labels), finite, folder)


def _starts_one(scenario: Scenario) -> bool:
    return any(one.url is None for one in scenario.servers)


def _labels(scenario: Scenario, family: _FamilyFacts | None) -> list[str] | None:
    """The labels that answers can have; None where another family may answer at a URL."""
    return family.labels if family is not None and _starts_one(scenario) else None


def _without_secrets(scenario: Scenario) -> dict[str, Any]:
    """The scenario for the report: headers may be passwords, and reports are passed on."""
    shown = scenario.model_dump(mode="json")
    shown["headers"] = dict.fromkeys(scenario.headers, "(not shown)")
    return shown
