"""Count answers in a tally, and hand each process's tally to the results file.

Runs inside Locust. Every second a worker sends its part to the master in a custom message. The
master, or the only process, appends each part to the results file, so that measurements survive a
crash or Ctrl-C.
"""

import json
import time
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import WorkerRunner

from muxserve.loadtest.generator.requests import Answer, Request
from muxserve.loadtest.generator.tally import OK, Tally, bucket_of
from muxserve.loadtest.scenario.texts import Labels

MESSAGE = "muxserve_tally"
FLUSH_S = 1.0


class Recorder:
    """Counts the answers of one process. All methods run in gevent's single thread."""

    def __init__(self, environment: Environment, results: Path | None, users: int) -> None:
        """Start with an empty tally.

        Args:
            environment: Locust's.
            results: of the job; None in a plain run, where Locust's own tables are all.
            users: that end before the run does.
        """
        self._environment = environment
        self._results = results
        self._waiting_for = users
        self._tally = Tally()
        self.start_s = 0.0
        self._cpu_s = time.process_time()
        self._flushing: gevent.Greenlet | None = None

    def begin(self, ahead_s: float) -> None:
        """The time from which seconds are counted; slightly ahead, so that all users are there."""
        self.start_s = time.monotonic() + ahead_s
        self._tally = Tally()
        self._cpu_s = time.process_time()
        if not isinstance(self._environment.runner, WorkerRunner):
            self._write({"start_unix_s": time.time() + ahead_s})
        self._flushing = gevent.spawn(self._flush_now_and_then)

    def end(self) -> None:
        """Hand over what is left; may be called again."""
        if self._flushing is not None:
            self._flushing.kill(block=False)
            self._flushing = None
        self.flush()
        if self._waiting_for > 0 and not isinstance(self._environment.runner, WorkerRunner):
            # Locust was told to stop, in its web UI; nobody may wait for the rest.
            self._waiting_for = 0
            self._write({"end_unix_s": time.time(), "stopped": True})

    def due(self, at_s: float, sent_s: float) -> None:
        """A request that was due at a time from the start and is sent now."""
        second = self._tally.at(at_s)
        second.due += 1
        second.lags[bucket_of(sent_s - at_s)] += 1

    def answered(self, request: Request, answer: Answer, due_s: float, now_s: float) -> None:
        """The answer to a request."""
        second = self._tally.at(due_s)
        second.statuses[answer.status] += 1
        if answer.status != OK:
            self._tally.examples.setdefault(answer.status, answer.message)
            return
        texts = request.texts
        second.latencies[bucket_of(now_s - due_s)] += 1
        second.texts += len(texts)
        second.widths.update(answer.widths)
        self._tally.at(now_s).completed += len(texts)
        for text, label in zip(texts, answer.labels, strict=False):
            if text.label is not None:
                judged, right = _same(label, text.label)
                second.judged += judged
                second.correct += right
            if text.alone is not None:
                compared, agreed = _same(label, text.alone)
                second.compared += compared
                second.agreed += agreed

    def user_is_through(self) -> None:
        """A user of this process has sent all and waited for the answers."""
        self.flush(through=1)

    def flush(self, *, through: int = 0) -> None:
        """Hand over what was noted since the last time."""
        now_s = time.process_time()
        self._tally.cpu_s, self._cpu_s = now_s - self._cpu_s, now_s
        part, self._tally = self._tally, Tally()
        runner = self._environment.runner
        if self._results is None or runner is None:
            return
        data = {"tally": part.as_json(), "through": through}
        if isinstance(runner, WorkerRunner):
            runner.send_message(MESSAGE, data)
        else:
            self.received(data)

    def received(self, data: dict[str, Any]) -> None:
        """A part of some process; the run ends with the last user."""
        self._write({"tally": data["tally"]})
        self._waiting_for -= data["through"]
        if data["through"] and self._waiting_for == 0 and self._environment.runner is not None:
            self._write({"end_unix_s": time.time()})
            gevent.spawn(self._environment.runner.quit)

    def _flush_now_and_then(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            self.flush()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._results is not None:
            with self._results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _same(given: Labels, wanted: Labels) -> tuple[int, int]:
    """How many labels can be compared, and how many are the same."""
    if isinstance(wanted, str):
        return 1, int(given == wanted)
    got = [given] if isinstance(given, str) else given
    return len(wanted), sum(one == other for one, other in zip(got, wanted, strict=False))
