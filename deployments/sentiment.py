"""Sentiment of English texts.

``serve run deployments.sentiment:app``, with settings such as ``engine.latency_target_ms=20``.
"""

from pydantic import Field
from ray.serve import Application

from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig


class SentimentConfig(ServeConfig):
    """The settings of every application, with the shipped family as default."""

    family: str = Field("sentiment", min_length=1, description="A shipped family, or a folder.")


def app(config: SentimentConfig) -> Application:
    """Called by ``serve run`` with its ``key=value`` arguments."""
    return build_app(config)
