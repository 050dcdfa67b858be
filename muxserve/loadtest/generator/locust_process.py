"""Run Locust in processes of its own: a job in, its tally out while it runs.

Locust replaces Python's sockets with gevent's, so nothing of it is imported here: its processes
read the job from one file and append what they count to another.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from muxserve.loadtest.generator.load_spec import JOB_VARIABLE, Job
from muxserve.loadtest.generator.tally import Tally
from muxserve.loadtest.servers.process import HOST, free_port

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
#: The class of users of each kind of request.
USER_OF = {
    "text": "OneText",
    "texts": "ManyTexts",
    "mixed": "MixedLengths",
    "tokens": "Words",
    "ready": "Ready",
    "oip-http": "OipHttp",
    "oip-grpc": "OipGrpc",
    "handle": "Handle",
}
_END_S = 10.0


class GeneratorFailed(RuntimeError):
    """Locust did not start or ended before its job; the message has the end of its log."""


class Generator:
    """One running job. Use it as a context manager; leaving it ends all of its processes."""

    def __init__(self, job: Job, folder: Path, *, workers: int, web_port: int | None) -> None:
        """Describe a run; nothing starts before ``with``.

        Args:
            job: what to send; ``users`` and ``results`` are set here.
            folder: for files of the run; a new one for each job.
            workers: of Locust; 0 for one process that does all.
            web_port: where Locust's web UI is to be; None for none.
        """
        self.tally = Tally()
        self.start_unix_s: float | None = None
        self.end_unix_s: float | None = None
        #: Somebody stopped it early, in the web UI.
        self.stopped = False
        self._results = folder / "results.jsonl"
        self._log = folder / "locust.log"
        self._job_file = folder / "job.json"
        self._read_until = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers, self._web_port = workers, web_port
        self._job = job.model_copy(update={"users": max(1, workers), "results": self._results})

    def __enter__(self) -> Self:
        job, workers = self._job, self._workers
        self._results.touch()
        self._job_file.write_text(job.model_dump_json(), encoding="utf-8")
        base = [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), USER_OF[job.kind]),
            *("--loglevel", "WARNING", "--host", job.url),
        ]
        first = ["--headless"]
        if self._web_port is not None:
            first = ["--autostart", "--web-host", HOST, "--web-port", str(self._web_port)]
        first += ["-u", str(job.users), "-r", str(job.users), "--exit-code-on-error", "0"]
        if workers:
            port = str(free_port())
            first += ["--master", "--master-bind-host", HOST, "--master-bind-port", port]
            first += ["--expect-workers", str(workers), "--expect-workers-max-wait", "60"]
            for _ in range(workers):
                self._start([*base, "--worker", "--master-host", HOST, "--master-port", port])
        self._start([*base, *first])
        return self

    def _start(self, command: list[str]) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, JOB_VARIABLE: str(self._job_file)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # We pass Ctrl-C on ourselves, so that nothing that was counted is lost.
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._processes.append(process)

    def __exit__(self, *_: object) -> None:
        # The master first: it tells its workers to end and takes their last parts.
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.read()

    @property
    def running(self) -> bool:
        """Whether more is to come.

        Raises:
            GeneratorFailed: Locust ended before its job.
        """
        ended = [one.returncode for one in self._processes if one.poll() is not None]
        if ended:
            self.read()
        if self.end_unix_s is None and ended:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise GeneratorFailed(f"Locust ended with {ended[0]} before its job\n{tail}")
        return self.end_unix_s is None

    def read(self) -> None:
        """Take what was appended since the last time."""
        with self._results.open("rb") as file:
            file.seek(self._read_until)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self._read_until += whole
        for line in content[:whole].splitlines():
            entry: dict[str, Any] = json.loads(line)
            if "tally" in entry:
                self.tally.add(Tally.from_json(entry["tally"]))
            self.start_unix_s = entry.get("start_unix_s", self.start_unix_s)
            self.end_unix_s = entry.get("end_unix_s", self.end_unix_s)
            self.stopped = entry.get("stopped", self.stopped)

    @property
    def ran_s(self) -> float:
        """Seconds from the first request that was due to the end."""
        if self.start_unix_s is None or self.end_unix_s is None:
            return 0.0
        return max(0.0, self.end_unix_s - self.start_unix_s)

    @property
    def at_s(self) -> float:
        """Seconds since the first request was due; 0 before."""
        return 0.0 if self.start_unix_s is None else max(0.0, time.time() - self.start_unix_s)
