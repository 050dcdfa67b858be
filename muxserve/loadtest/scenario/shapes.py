"""A load over time: how many requests per second are due, and when each one is.

Arrivals are Poisson and drawn before anything is sent, so that a slow server cannot slow its own
test. Only ``saturate`` waits for answers: it measures a rate, and its latencies are those of its
own line.
"""

import math
import random
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    warm_up_s: float = Field(
        2.0, ge=0, le=600, description="Seconds at the start that are not counted."
    )

    @property
    def duration_s(self) -> float:
        """Seconds from the first request that is due to the last."""
        raise NotImplementedError

    def rate_at(self, at_s: float) -> float:
        """Requests per second that are due at a time from the start."""
        raise NotImplementedError

    @property
    def highest_rate(self) -> float:
        """No rate is above this."""
        raise NotImplementedError


class _Rated(_Shape):
    rate_per_s: float | None = Field(None, gt=0, le=1e6, description="Requests per second.")
    of_capacity: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Instead of a rate: a share of what this server reached under 'saturate'.",
    )
    of_baseline: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Instead of a rate: a share of what the first server reached under 'saturate'.",
    )

    @model_validator(mode="after")
    def _one_rate(self) -> "_Rated":
        if (
            sum(one is not None for one in (self.rate_per_s, self.of_capacity, self.of_baseline))
            != 1
        ):
            raise ValueError("give exactly one of rate_per_s, of_capacity and of_baseline")
        return self

    @property
    def base(self) -> float:
        """The rate, which must be known by now."""
        if self.rate_per_s is None:
            raise ValueError(f"the rate of '{self.shape}' is not known yet")  # type: ignore[attr-defined]
        return self.rate_per_s


class Constant(_Rated):
    """The same rate all the time."""

    shape: Literal["constant"]
    seconds: float = Field(30.0, gt=0, le=86_400, description="Length.")

    @property
    def duration_s(self) -> float:
        return self.seconds

    def rate_at(self, at_s: float) -> float:
        return self.base

    @property
    def highest_rate(self) -> float:
        return self.base


class Soak(Constant):
    """A constant rate for long: whether memory, latency or errors grow."""

    shape: Literal["soak"]  # type: ignore[assignment]
    seconds: float = Field(3600.0, gt=0, le=7 * 86_400, description="Length.")


class Burst(_Rated):
    """A steady rate, a multiple of it, and the steady rate again."""

    shape: Literal["burst"]
    factor: float = Field(10.0, gt=1, le=1000, description="The burst's rate over the steady one.")
    steady_s: float = Field(15.0, gt=0, le=86_400, description="Seconds before, and after.")
    burst_s: float = Field(15.0, gt=0, le=86_400, description="Seconds of the burst.")

    @property
    def duration_s(self) -> float:
        return 2 * self.steady_s + self.burst_s

    def rate_at(self, at_s: float) -> float:
        within = self.steady_s <= at_s < self.steady_s + self.burst_s
        return self.base * (self.factor if within else 1)

    @property
    def highest_rate(self) -> float:
        return self.base * self.factor


class Diurnal(_Rated):
    """Days pressed together: the rate goes from its least to its most and back, as a cosine."""

    shape: Literal["diurnal"]
    factor: float = Field(5.0, gt=1, le=1000, description="Noon's rate over midnight's.")
    day_s: float = Field(60.0, gt=0, le=86_400, description="Seconds of one day.")
    days: float = Field(1.0, gt=0, le=365, description="How many.")

    @property
    def duration_s(self) -> float:
        return self.day_s * self.days

    def rate_at(self, at_s: float) -> float:
        noon = 0.5 - 0.5 * math.cos(2 * math.pi * at_s / self.day_s)
        return self.base * (1 + (self.factor - 1) * noon)

    @property
    def highest_rate(self) -> float:
        return self.base * self.factor


class Saturate(_Shape):
    """A closed loop: each client sends its next request when the last one is answered."""

    shape: Literal["saturate"]
    clients: int = Field(256, ge=1, le=10_000, description="Requests that are always under way.")
    seconds: float = Field(12.0, gt=0, le=86_400, description="Length.")

    @property
    def duration_s(self) -> float:
        return self.seconds

    def rate_at(self, at_s: float) -> float:
        raise NotImplementedError("a closed loop has no rate of its own")

    @property
    def highest_rate(self) -> float:
        raise NotImplementedError("a closed loop has no rate of its own")


class Search(_Shape):
    """Steps of a constant rate, for the highest one whose latency is within a target."""

    shape: Literal["search"]
    target_p99_ms: float = Field(100.0, gt=0, le=600_000, description="p99 of a step that passes.")
    max_error_rate: float = Field(0.0, ge=0, lt=1, description="Share of errors that passes.")
    start_per_s: float = Field(50.0, gt=0, le=1e6, description="Rate of the first step.")
    step_s: float = Field(8.0, ge=1, le=3600, description="Seconds of a step.")
    max_steps: int = Field(8, ge=2, le=50, description="Steps at most: doubling, then halving.")

    @property
    def duration_s(self) -> float:
        return self.step_s * self.max_steps


Shape = Annotated[
    Constant | Soak | Burst | Diurnal | Saturate | Search, Field(discriminator="shape")
]
OpenShape = Constant | Soak | Burst | Diurnal


def arrivals_s(shape: OpenShape, scale: float, rng: random.Random) -> Iterator[float]:
    """Times from the start at which requests are due: a Poisson process, by thinning.

    Args:
        shape: with its rate known.
        scale: share of the rate that this process sends; the sum of several is Poisson again.
        rng: of the process.
    """
    highest = shape.highest_rate
    now = 0.0
    while (now := now + rng.expovariate(highest * scale)) < shape.duration_s:
        if rng.random() * highest < shape.rate_at(now):
            yield now
