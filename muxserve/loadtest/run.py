"""Run a scenario server by server, and collect everything that the report shows.

Whatever was measured before a server died, or before Ctrl-C, stays in the report, and the report
says what is missing.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from muxserve.loadtest.generator.load_spec import Job
from muxserve.loadtest.generator.locust_process import GeneratorFailed
from muxserve.loadtest.one_load import run_load
from muxserve.loadtest.report.verdict import verdict
from muxserve.loadtest.scenario.scenario import RANDOM_BASE, Scenario, ServerSpec
from muxserve.loadtest.scenario.shapes import Constant, Search, Shape
from muxserve.loadtest.scenario.texts import Text, labels_in, load_texts, write_texts
from muxserve.loadtest.search import highest_rate, passes, search_row
from muxserve.loadtest.servers.reference_labels import ask_alone
from muxserve.loadtest.servers.targets import Target, TargetFailed, open_target
from muxserve.measure.machine import describe

_ALONE_LIMIT_S = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a run is: seconds of load done, and what it does now."""

    done_s: float
    total_s: float
    what: str
    detail: str = ""


@dataclass
class _UnderTest:
    """One server, and what its loads need.

    Attributes:
        entry: of the report.
        target: the server.
        scenario: as this server has it.
        texts: what is sent.
        folder: for files of its loads.
    """

    entry: dict[str, Any]
    target: Target
    scenario: Scenario
    texts: list[Text]
    folder: Path


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
    _quality: Mapping[int, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Every server, every load. ``report['status']`` says how it ended.

        ``complete``, ``interrupted`` (Ctrl-C), or ``incomplete``: a server did not start, died, or
        answered nothing.
        """
        self.report = {
            "scenario": _without_secrets(self.scenario),
            "environment": {**describe(), "locust": version("locust")},
            "started_unix_s": time.time(),
            "servers": [],
            "status": "complete",
            "problems": [],
            "notes": [],
        }
        try:
            with _with_family(self.scenario) as scenario:
                texts = self._texts(scenario)
                for spec in scenario.servers:
                    self._server(spec, scenario.seen_by(spec), texts)
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

    def _texts(self, scenario: Scenario) -> list[Text]:
        """What is sent; the report gets what is known of it and of the family."""
        family = _family(scenario)
        tokenizer = None if family is None else family.tokenizer
        labels = _labels(scenario, family)
        texts = load_texts(scenario.texts, scenario.seed, tokenizer, labels)
        self._quality = family.quality if family else {}
        self.report["measured_quality"] = {str(n): value for n, value in self._quality.items()}
        self.report["texts"] = {
            "count": len(texts),
            "labelled": sum(one.label is not None for one in texts),
            "mean_words": sum(len(one.text.split()) for one in texts) / len(texts),
        }
        return texts

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

    def _server(self, spec: ServerSpec, scenario: Scenario, texts: list[Text]) -> None:
        entry: dict[str, Any] = {"name": spec.name, "spec": spec.model_dump(), "loads": []}
        self.report["servers"].append(entry)
        end_s = self._done_s + sum(one.duration_s for one in scenario.load)
        self._tell(f"{spec.name}: {'looking for it' if spec.url else 'starting'}")
        try:
            with (
                open_target(spec, scenario) as target,
                tempfile.TemporaryDirectory(prefix="muxload") as folder,
            ):
                if target.ask_url is not None and any(one.alone is None for one in texts):
                    self._tell(f"{spec.name}: asking for N=1's answers")
                    ask_alone(texts, target.ask_url, _ALONE_LIMIT_S, scenario.headers)
                    self._check_labels(texts)
                server = _UnderTest(entry, target, scenario, texts, Path(folder))
                for shape in scenario.load:
                    self._load(server, shape)
        except (TargetFailed, GeneratorFailed) as error:
            entry["failed"] = str(error)
            self._problem(str(error))
        self._done_s = end_s

    def _load(self, server: _UnderTest, shape: Shape) -> None:
        known = _with_rate(shape, server, self.report["servers"][0])
        loads = server.entry["loads"]
        if not isinstance(known, Search):
            asked = shape.model_dump()
            self._once(server, known, lambda row: loads.append({**row, "asked": asked}))
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

            self._once(server, step, keep)
            return bool(steps[-1]["passed"])

        try:
            highest_rate(known, passes_at)
        finally:
            if steps:  # however it ended
                loads.append(search_row(known, steps))

    def _once(
        self, server: _UnderTest, shape: Shape, keep: Callable[[dict[str, Any]], None]
    ) -> None:
        """One shape of load on one server; ``keep`` gets its row before anything is raised."""
        scenario, target, texts = server.scenario, server.target, server.texts
        own = Path(tempfile.mkdtemp(dir=server.folder))
        if target.body is not None:
            texts = [Text(one.text, body=target.body(one.text).decode()) for one in texts]
        write_texts(own / "texts.jsonl", texts)
        job = Job(
            url=target.url,
            kind=scenario.requests,
            shape=shape,
            texts=own / "texts.jsonl",
            path=target.path,
            model=target.model,
            texts_per_request=scenario.texts_per_request,
            headers=scenario.headers,
            timeout_s=scenario.timeout_s,
            seed=scenario.seed,
        )
        what = f"{server.entry['name']}: {shape.shape}"
        row, cut = run_load(
            what,
            target,
            job,
            own,
            workers=scenario.workers,
            web_port=self.web_port,
            quality=self._quality,
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


def _with_rate(shape: Shape, server: _UnderTest, baseline: Mapping[str, Any]) -> Shape:
    """A shape whose rate is a share of what was reached, with that rate in requests."""
    for name, entry in (("of_capacity", server.entry), ("of_baseline", baseline)):
        share = getattr(shape, name, None)
        if share is None:
            continue
        reached = [
            one["texts_per_s"] for one in entry["loads"] if one["shape"]["shape"] == "saturate"
        ]
        if not reached or not reached[-1]:
            raise TargetFailed(f"'{shape.shape}' needs the rate of 'saturate', which is not known")
        rate = share * reached[-1] / server.scenario.texts_of_a_request
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


@contextmanager
def _with_family(scenario: Scenario) -> Iterator[Scenario]:
    """The scenario, with a folder that is written here in place of ``random-base``."""
    if scenario.family != RANDOM_BASE:
        yield scenario
        return
    from muxserve.measure.families import write_random_family

    with tempfile.TemporaryDirectory(prefix="muxload") as folder:
        family = write_random_family(Path(folder) / RANDOM_BASE)
        yield scenario.model_copy(update={"family": str(family)})


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
