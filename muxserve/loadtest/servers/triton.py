"""A real Triton server on this machine, from a wheel: for tests, load tests and a first look.

    make triton-server                                  # once: the server's own environment
    python -m muxserve.loadtest.servers.triton models/  # until Ctrl-C

``nvidia-pytriton`` holds the ``tritonserver`` binary and its Python backend (not the ONNX Runtime
one). Its release needs numpy below 2 in the Python that runs models, so it has an environment of
its own.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Self

from muxserve.loadtest.servers.process import HOST, ProcessFailed, free_port

ROOT = Path(__file__).parents[3]
ENVIRONMENT = ROOT / ".cache" / "triton-server"
START_S = 120.0
STOP_S = 15.0


class TritonFailed(ProcessFailed):
    """The server is not installed, did not start, or ended; the message has the end of its log."""


class TritonServer:
    """One ``tritonserver`` process; use it as a context manager, or call ``stop``."""

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int | None = None,
        grpc_port: int | None = None,
        environment: Path = ENVIRONMENT,
        arguments: tuple[str, ...] = (),
    ) -> None:
        """Describe a server; ``start`` starts it.

        Args:
            repository: the models.
            http_port, grpc_port: on 127.0.0.1; free ones by default.
            environment: a virtual environment with the server in it.
            arguments: more of the server's own.
        """
        self.repository = repository
        self.http_port = http_port or free_port()
        self.grpc_port = grpc_port or free_port()
        self.metrics_port = free_port()
        self._environment = environment
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="triton-"))
        self._shared_memory = f"mux{uuid.uuid4().hex[:8]}_"
        self.log_file = self._folder / "log"

    @property
    def http(self) -> str:
        """host:port of HTTP."""
        return f"{HOST}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """host:port of gRPC."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the server's process."""
        if self._process is None:
            raise TritonFailed("tritonserver was not started")
        return self._process.pid

    def log(self) -> str:
        """What the server said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def complaints(self) -> str:
        """The lines of the log that say what is wrong; its end where none does."""
        lines = self.log().splitlines()
        wrong = [
            line.strip()
            for line in lines
            if re.match(r"E\d{4} |error: ", line) or "UNAVAILABLE" in line
        ]
        return "\n".join(wrong[-20:] or lines[-20:])

    def start(self, *, wait: bool = True) -> Self:
        """Start the process and wait until every model is ready.

        Raises:
            TritonFailed: where it is not installed, ends, or is not ready in time.
        """
        command, settings = self._command()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=settings, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            try:
                self._wait_until_ready()
            except BaseException:
                self.stop()
                raise
        return self

    def kill(self) -> None:
        """End the server and its models at once, as a crash does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._remove_shared_memory()

    def stop(self) -> None:
        """Ask it to end, kill it where it does not, and remove what it leaves behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> tuple[list[str], dict[str, str]]:
        packages = self._packages()
        server = packages / "pytriton" / "tritonserver"
        backends = self._folder / "backends"
        python = backends / "python"
        if not python.exists():
            python.mkdir(parents=True)
            own = server / "backends" / "python"
            version = packages.parent.name.removeprefix("python")
            for file in (
                own / "libtriton_python.so",
                own / "triton_python_backend_utils.py",
                server / "python_backend_stubs" / version / "triton_python_backend_stub",
            ):
                (python / file.name).symlink_to(file)
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={server / 'caches'}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=10",
            *(f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            "--backend-config=python,shm-default-byte-size=1048576",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            *self._arguments,
        ]
        libraries = [packages / "nvidia_pytriton.libs", self._library_folder()]
        settings = {
            **{key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ},
            # The first python on the path is the one that runs models.
            "PATH": f"{self._environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "CUDA_VISIBLE_DEVICES": "",
        }
        return command, settings

    def _packages(self) -> Path:
        found = sorted(self._environment.glob("lib/python3.*/site-packages"))
        if not found or not (found[-1] / "pytriton").is_dir():
            raise TritonFailed(
                f"no Triton server in {self._environment}; install it with: make triton-server"
            )
        return found[-1]

    def _library_folder(self) -> str:
        """Where libpython is, which the model processes load."""
        asked = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
        python = self._environment / "bin" / "python"
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if not self.running:
                raise TritonFailed(f"tritonserver ended:\n{self.complaints()}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                url = f"http://{self.http}/v2/health/ready"
                with urllib.request.urlopen(url, timeout=2) as response:
                    if response.status == 200:
                        return
            time.sleep(0.1)
        raise TritonFailed(f"tritonserver is not ready after {START_S:g} s:\n{self.complaints()}")

    def _remove_shared_memory(self) -> None:
        for file in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            file.unlink(missing_ok=True)


def main() -> None:
    """Serve a repository until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m muxserve.loadtest.servers.triton",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--http-port", type=int, default=8010)
    parser.add_argument("--grpc-port", type=int, default=8011)
    options = parser.parse_args()
    if not options.repository.is_dir():
        sys.exit(f"error: {options.repository}: no such folder")
    # Set here, because a shell's background process ignores SIGINT; and without a handler SIGTERM
    # would leave the server running.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with TritonServer(
            options.repository, http_port=options.http_port, grpc_port=options.grpc_port
        ) as server:
            sys.stderr.write(f"ready: HTTP on {server.http}, gRPC on {server.grpc}\n")
            while not stop.wait(0.5):
                if not server.running:
                    raise TritonFailed(f"tritonserver ended:\n{server.complaints()}")
    except TritonFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
