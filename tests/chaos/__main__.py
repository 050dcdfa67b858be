"""``make chaos``: long scenarios and soaks, whose figures go to docs/reliability.md."""

import argparse
import asyncio
import os
import sys
import time
import traceback
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.chaos import report
from tests.chaos.harness import LONG, ROOT, SHORT, Scale
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.soak import SETTINGS, soak, verdict


def main() -> int:
    """Run what the command line asks for; return the number of broken promises."""
    arguments = _arguments()
    results = report.Results(arguments.out)
    scale = SHORT if arguments.short else LONG
    if arguments.cases is not None:
        scale = Scale(**{**vars(scale), "cases": arguments.cases})
    failed = 0
    for place, group in groupby(_chosen(arguments.only), key=lambda one: one.place):
        scenarios = list(group)
        while scenarios:
            # A failed scenario may leave its server broken: the rest gets a new one.
            try:
                with place() as server:
                    while scenarios:
                        scenario = scenarios.pop(0)
                        if not _run(scenario, server, scale, results):
                            failed += 1
                            break
            except Exception:
                traceback.print_exc()
                failed += 1
                break
    soaks = [] if arguments.soaks == "none" else arguments.soaks.split(",")
    for together in [soaks] if arguments.together else [[one] for one in soaks]:
        failed += asyncio.run(_soak_all(together, arguments, results))
    for file in arguments.judge:
        one = verdict(file)
        results.add("soaks", one["runtime"], {**one, "together": arguments.together})
        _say(f"soak of {one['runtime']}: {'flat' if one['kept'] else 'NOT KEPT'} {one}")
        failed += not one["kept"]
    results.write_docs()
    return min(failed, 100)


def _run(scenario: Scenario, server: Any, scale: Scale, results: "report.Results") -> bool:
    began_s = time.monotonic()
    figures: dict[str, Any] = {}
    failure = None
    try:
        figures = asyncio.run(scenario.run(server, scale))
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"[:500]
    seconds = round(time.monotonic() - began_s, 1)
    results.add("scenarios", scenario.name, {"seconds": seconds, "failure": failure, **figures})
    _say(f"{scenario.name}: {failure or 'kept'} in {seconds} s {figures}")
    return failure is None


async def _soak_all(
    runtimes: list[str], arguments: argparse.Namespace, results: "report.Results"
) -> int:
    folder: Path = arguments.samples
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    files = [folder / f"soak-{runtime}-{stamp}.jsonl" for runtime in runtimes]
    for runtime, file in zip(runtimes, files, strict=True):
        _say(f"soak of {runtime} for {arguments.minutes:g} minutes, samples in {file}")
    ready = asyncio.Barrier(len(runtimes))
    cores = sorted(os.sched_getaffinity(0))
    if len(runtimes) > len(cores):
        sys.exit(
            f"--together needs a core for each of {len(runtimes)} soaks, here are {len(cores)}"
        )
    found = await asyncio.gather(
        *(
            soak(runtime, arguments.minutes, file, ready, set(cores[place :: len(runtimes)]))
            for place, (runtime, file) in enumerate(zip(runtimes, files, strict=True))
        ),
        return_exceptions=True,
    )
    failed = 0
    for runtime, one in zip(runtimes, found, strict=True):
        if isinstance(one, BaseException):
            traceback.print_exception(one)
            failed += 1
            continue
        results.add("soaks", runtime, {**one, "together": len(runtimes) > 1})
        _say(f"soak of {runtime}: {'flat' if one['kept'] else 'NOT KEPT'} {one}")
        failed += not one["kept"]
    return failed


def _chosen(only: str) -> list[Scenario]:
    if only in ("all", "none"):
        return list(SCENARIOS) if only == "all" else []
    wanted = only.split(",")
    for word in wanted:
        if not any(word in one.name for one in SCENARIOS):
            sys.exit(f"no scenario has {word!r} in its name; there are {_names()}")
    return [one for one in SCENARIOS if any(word in one.name for word in wanted)]


def _names() -> str:
    return ", ".join(one.name for one in SCENARIOS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    parser.add_argument("--only", default="all", help=f"parts of names, all or none: {_names()}")
    parser.add_argument("--soaks", default="torch,openvino", help="of runtimes, or none")
    parser.add_argument(
        "--together", action="store_true", help="run the soaks at once, each on cores of its own"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of each soak")
    parser.add_argument("--cases", type=int, help="of fuzzing, over all protocols")
    parser.add_argument(
        "--judge", type=Path, nargs="*", default=[], help="samples of soaks that were ended early"
    )
    parser.add_argument("--short", action="store_true", help="as make test-chaos has them")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--samples", type=Path, default=ROOT / "build" / "soaks")
    found = parser.parse_args()
    for runtime in [] if found.soaks == "none" else found.soaks.split(","):
        if runtime not in SETTINGS:
            parser.error(f"--soaks: {runtime!r} is none of {', '.join(SETTINGS)}")
    return found


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
