"""The locustfile: users and events, for jobs of ``muxserve loadtest`` and for plain Locust.

    locust -f loadtests/locustfile.py OneText --host http://127.0.0.1:8000

Only Locust imports it, because Locust replaces Python's sockets with gevent's.
"""

from pathlib import Path
from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from muxserve.loadtest.generator.load_spec import Job, job_of_environment
from muxserve.loadtest.generator.recording import MESSAGE, Recorder
from muxserve.loadtest.generator.users import (
    Handle,
    ManyTexts,
    MixedLengths,
    MuxUser,
    OipGrpc,
    OipHttp,
    OneText,
    Ready,
    Words,
    set_up,
)
from muxserve.loadtest.scenario.scenario import read_scenario
from muxserve.loadtest.scenario.shapes import Constant
from muxserve.loadtest.scenario.texts import load_texts, read_texts

__all__ = [
    "Handle",
    "ManyTexts",
    "MixedLengths",
    "OipGrpc",
    "OipHttp",
    "OneText",
    "Ready",
    "Words",
]

#: A run without an end of its own; Locust ends it.
_FOR_EVER_S = 86_400.0
#: Seconds from the start message to the first request: time for every worker to have its user.
_AHEAD_S, _AHEAD_DISTRIBUTED_S = 0.3, 1.5


def _options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("muxserve")
    group.add_argument(
        "--rate-per-user", type=float, default=1.0, help="Poisson requests per second of each user."
    )
    group.add_argument(
        "--scenario", default="", help="Take texts and the first open-loop load from this file."
    )
    group.add_argument(
        "--model", default="sentiment", help="Model name of the Open Inference Protocol."
    )


def _prepare(environment: Environment, runner: Any, **_: Any) -> None:
    job = job_of_environment()
    if job is None:
        return  # a plain run may be given its options in the web UI, when it starts
    recorder = Recorder(environment, job.results, job.users)
    set_up(job, read_texts(job.texts), recorder)
    if not isinstance(runner, WorkerRunner) and runner is not None:
        runner.register_message(MESSAGE, lambda environment, msg, **_: recorder.received(msg.data))


def _begin(environment: Environment, **_: Any) -> None:
    distributed = type(environment.runner).__name__ != "LocalRunner"
    if job_of_environment() is None:
        job, texts = _plain(environment)
        set_up(job, texts, Recorder(environment, None, 0))
    MuxUser.recorder.begin(_AHEAD_DISTRIBUTED_S if distributed else _AHEAD_S)


def _end(environment: Environment, **_: Any) -> None:
    if hasattr(MuxUser, "recorder"):
        MuxUser.recorder.end()


def _plain(environment: Environment) -> tuple[Job, Any]:
    options = environment.parsed_options
    scenario = read_scenario(Path(options.scenario)) if options and options.scenario else None
    rate = options.rate_per_user if options else 1.0
    shape: Any = Constant(shape="constant", rate_per_s=rate, seconds=_FOR_EVER_S)
    if scenario is None:
        from muxserve.loadtest.scenario.scenario import TextsSpec

        texts = load_texts(TextsSpec(), 0)
    else:
        texts = load_texts(scenario.texts, scenario.seed)
        known = [one for one in scenario.load if getattr(one, "rate_per_s", None)]
        shape = known[0] if known else shape
    job = Job(
        url=environment.host or "http://127.0.0.1:8000",
        kind=scenario.requests if scenario else "text",
        shape=shape,
        texts=Path(),
        model=options.model if options else "",
        texts_per_request=scenario.texts_per_request if scenario else 16,
        headers=scenario.headers if scenario else {},
        timeout_s=scenario.timeout_s if scenario else 30.0,
    )
    return job, texts


events.init_command_line_parser.add_listener(_options)
events.init.add_listener(_prepare)
events.test_start.add_listener(_begin)
events.test_stop.add_listener(_end)
events.quitting.add_listener(_end)
