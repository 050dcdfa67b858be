"""A report on disk: ``report.json``, ``report.html``, ``summary.csv`` and ``timeline.csv``."""

import csv
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muxserve.errors import InvalidInput
from muxserve.loadtest.report.page import page
from muxserve.loadtest.report.verdict import gains, rate_of

JSON_NAME, HTML_NAME = "report.json", "report.html"
_SUMMARY = [
    "texts_per_s",
    "gain_over_first",
    "highest_rate_per_s",
    "offered_per_s",
    "requests",
    "answered",
    "under_way_at_end",
    "error_rate",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p999_ms",
    "max_ms",
    "mean_num_instances",
    "occupancy",
    "texts_per_forward",
    "accuracy",
    "agreement_with_n1",
    "measured_quality",
    "server_cpu_s_per_1000_texts",
    "generator_cpu_s_per_1000_texts",
    "generator_late_p99_ms",
]
_TIMELINE = [
    "at_s",
    "due_per_s",
    "texts_per_s",
    "p50_ms",
    "p99_ms",
    "errors_per_s",
    "mean_num_instances",
    "occupancy",
    "waiting",
    "accuracy",
    "agreement_with_n1",
]


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report, before anything is measured for it.

    Raises:
        InvalidInput: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInput(f"--out {folder}: {error.strerror}; choose another folder") from None


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write every form of it; gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _whole(folder / JSON_NAME, json.dumps(report, indent=1) + "\n")
    _whole(folder / HTML_NAME, page(report))
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["server", "load", "errors", *_SUMMARY])
        over = gains(report)
        for server, load in _loads(report):
            reached = {"highest_rate_per_s": None, **load}
            reached["gain_over_first"] = over.get(server) if rate_of(load) is not None else None
            errors = " ".join(f"{code}:{count}" for code, count in load["errors"].items())
            rows.writerow([server, load["shape"]["shape"], errors, *(reached[k] for k in _SUMMARY)])
    with (folder / "timeline.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["server", "load", *_TIMELINE])
        for server, load in _loads(report):
            for point in load["timeline"]:
                rows.writerow([server, load["shape"]["shape"], *(point[key] for key in _TIMELINE)])
    return folder / HTML_NAME


def read_report(path: Path) -> dict[str, Any]:
    """A report from its folder or its JSON file.

    Raises:
        InvalidInput: it cannot be read, or is no report.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content["scenario"], content["servers"]
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{file}: not a report of `muxserve loadtest`") from None
    return content


def _loads(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(server["name"], load) for server in report["servers"] for load in server["loads"]]


def _whole(file: Path, content: str) -> None:
    """Write it whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(file)
