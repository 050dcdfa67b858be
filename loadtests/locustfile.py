"""Load on a muxserve over HTTP, with open-loop arrivals; see docs/loadtests.md.

locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 OneText
locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -t 30s OneText
"""

import json
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from locust.contrib.fasthttp import FastHttpUser
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from open_loop import WIDTHS, OpenLoopUser

from muxserve.bench.texts import generated_texts

_READ: dict[str, list[str]] = {}


def texts_of(file: str) -> list[str]:
    """The lines of a file, or generated texts of 5 to 60 words."""
    if file not in _READ:
        if file:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
            _READ[file] = [line for line in lines if line.strip()]
        else:
            tokenizer = files("muxserve") / "families" / "sentiment" / "tokenizer.json"
            _READ[file] = generated_texts(Tokenizer.from_file(str(tokenizer)), 2000)
    return _READ[file]


class _HttpUser(OpenLoopUser, FastHttpUser):
    """Sends JSON; what does not answer 200 is a failure under its error code."""

    abstract = True
    # All requests of a user that are under way at once; more would wait for a connection.
    concurrency = 4096
    path: ClassVar[str] = "/predict"
    texts_per_request: ClassVar[int] = 1

    def body(self, texts: list[str]) -> dict[str, Any]:
        """The JSON of a request."""
        body: dict[str, Any] = {"inputs": texts[0] if len(texts) == 1 else texts}
        if cap := self.environment.parsed_options.max_num_instances:
            body["max_num_instances"] = cap
        return body

    def send(self, due_s: float) -> None:
        texts = texts_of(self.environment.parsed_options.texts)
        some = [self._random.choice(texts) for _ in range(self.texts_per_request)]
        with self.client.request(
            "POST",
            self.path,
            json=self.body(some),
            name=f"{type(self).__name__} {self.path}",
            catch_response=True,
        ) as answer:
            if answer.status_code == 200:
                answer.success()
                if (width := answer.headers.get("x-muxserve-num-instances")) is not None:
                    WIDTHS[int(width)] += 1
            else:
                answer.failure(_code(answer))
            answer.request_meta["response_time"] = 1000 * (time.perf_counter() - due_s)


class OneText(_HttpUser):
    """One text per request: what slots are filled from."""


class ManyTexts(_HttpUser):
    """32 texts per request."""

    texts_per_request = 32


class OpenInference(_HttpUser):
    """One text per request over the Open Inference Protocol; the family is sentiment."""

    path = "/v2/models/sentiment/infer"

    def body(self, texts: list[str]) -> dict[str, Any]:
        cap = self.environment.parsed_options.max_num_instances
        tensor = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
        return {"inputs": [tensor], "parameters": {"max_num_instances": cap} if cap else {}}


def _code(answer: Any) -> str:
    """What errors are counted by: the status and the stable code, not the message."""
    if not answer.status_code:
        return f"no answer: {type(answer.error).__name__}"
    try:
        content = json.loads(answer.text or "")
        return f"{answer.status_code} {content.get('code') or content['error']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)
