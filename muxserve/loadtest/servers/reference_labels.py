"""What N=1 answers to each text, asked of the server itself before it is loaded."""

import http.client
import time
from collections.abc import Mapping

import orjson

from muxserve.loadtest.scenario.texts import Text
from muxserve.loadtest.servers.http_request import request

_TEXTS_PER_REQUEST = 64


def ask_alone(texts: list[Text], url: str, limit_s: float, headers: Mapping[str, str]) -> int:
    """Note N=1's answer in each text that has none yet.

    A server that is pinned to a wider N does not answer at N=1; then, and when ``limit_s`` is over,
    the rest stays unknown.

    Args:
        texts: are changed.
        url: of a muxserve.
        limit_s: seconds that it may take.
        headers: sent with each request.

    Returns:
        For how many texts it is known now.
    """
    end = time.monotonic() + limit_s
    missing = [one for one in texts if one.alone is None]
    for at in range(0, len(missing), _TEXTS_PER_REQUEST):
        some = missing[at : at + _TEXTS_PER_REQUEST]
        body = orjson.dumps({"inputs": [one.text for one in some], "max_num_instances": 1})
        try:
            status, content = request(url, "/predict", body, headers, timeout_s=60)
            answers = orjson.loads(content) if status == 200 else []
        except (OSError, http.client.HTTPException, ValueError):
            break
        if not answers or any(one[0].get("num_instances") != 1 for one in answers):
            break
        for text, answer in zip(some, answers, strict=True):
            of_words = "word" in answer[0]
            text.alone = [one["label"] for one in answer] if of_words else answer[0]["label"]
        if time.monotonic() > end:
            break
    return sum(one.alone is not None for one in texts)
