"""The machine and the versions that a figure was measured with."""

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe() -> dict[str, str]:
    """Processor, cores, accelerator, versions and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    machine = {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    if torch.cuda.is_available():
        machine["accelerator"] = torch.cuda.get_device_name()
    for package in ("torch", "transformers", "ray"):
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "not installed"
    return machine
