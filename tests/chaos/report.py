"""Writes the figures of ``make chaos`` to the results file and docs/reliability.md."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muxserve.measure.machine import describe
from tests.chaos.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
_MB = 2**20


class Results:
    """Results by part and name; results of parts that are not run again stay."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def add(self, part: str, name: str, figures: Mapping[str, Any]) -> None:
        """Add one result and write it at once, so that an interrupted run loses nothing."""
        self._found["machine"] = describe()
        when = datetime.now(UTC).strftime("%Y-%m-%d")
        self._found.setdefault(part, {})[name] = {"date": when, **figures}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._found, indent=1) + "\n")

    def write_docs(self) -> None:
        """Update the page's tables, if these are the committed results."""
        if self._file == RESULTS and PAGE.exists():
            PAGE.write_text(with_tables(PAGE.read_text(), self._found))


def with_tables(page: str, found: Mapping[str, Any]) -> str:
    """The page with its tables replaced by those of the results."""
    for name, table in (("scenarios", scenarios(found)), ("soaks", soaks(found))):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}{table}{end}{after}"
    return page


def scenarios(found: Mapping[str, Any]) -> str:
    """The table with one row for each scenario."""
    rows = [
        "| scenario | what happens | what the others get | requests | right | errors | "
        "p50, p99 ms | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    results = found.get("scenarios", {})
    for one in SCENARIOS:
        seen = results.get(one.name)
        figures = ["not run", "", "", "", ""] if seen is None else _figures(seen)
        rows.append(f"| `{one.name}` | {one.what} | {one.promise} | {' | '.join(figures)} |")
    return "\n".join(rows) + "\n"


def _figures(seen: Mapping[str, Any]) -> list[str]:
    if seen["failure"] is not None:
        return ["", "", "", "", "**no**"]
    requests = f"{seen['requests']:,}"
    if "cases" in seen:
        requests = f"{seen['cases']:,} cases, {requests}"
    elif "connections" in seen:
        requests = f"{requests} beside {seen['connections']:,} connections"
    errors = ", ".join(f"{count:,} `{code}`" for code, count in seen["errors"].items()) or "none"
    times = f"{seen['p50_ms']:.0f}, {seen['p99_ms']:.0f}"
    if "quiet_p99_ms" in seen:
        times += f" (quiet: {seen['quiet_p99_ms']:.0f})"
    return [requests, f"{seen['right']:,}", errors, times, "yes"]


def soaks(found: Mapping[str, Any]) -> str:
    """The table with one row for each runtime."""
    rows = [
        "| runtime | minutes | requests per s | right | errors | memory MB, first to last | "
        "descriptors | threads | flat | Ray's own and all, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for runtime, seen in found.get("soaks", {}).items():
        serving, tree = seen["serving"], seen["tree"]
        right = f"{seen['right']:,} of {seen['requests']:,}"
        errors = ", ".join(f"{count:,} `{code}`" for code, count in seen["errors"].items())
        cells = [
            *(runtime, f"{seen['minutes']:g}", f"{seen['rate']:g}", right, errors or "none"),
            _range(serving["rss"], _MB),
            *(_range(serving[what], 1) for what in ("descriptors", "threads")),
            *("yes" if seen["flat"] else "**no**", _range(tree["rss"], _MB)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _range(one: Mapping[str, Any], unit: int) -> str:
    return f"{one['first'] / unit:,.0f} to {one['last'] / unit:,.0f}"
