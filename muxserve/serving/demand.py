"""One replica's counters in, its measurements for the autoscaling policy out.

Demand is what came, not what was served. Texts that a full line or a full ingress refused count
too; otherwise a full line would look like one that is just long enough.
"""

from dataclasses import dataclass

from muxserve.engine.stats import EngineStats

#: An ingress tells with every bundle what it holds back, and only holds texts back while bundles
#: are under way. What it told is believed for so long.
_BELIEVED_S = 30.0


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What an ingress did not send, told with a bundle.

    Attributes:
        ingress: which one.
        waiting: texts that wait there for a call to be free.
        refused: texts that it refused since its last bundle, for want of room.
    """

    ingress: str
    waiting: int
    refused: int


class DemandMeter:
    """Measures what comes to one replica between measurements. Belongs to one event loop."""

    def __init__(self, now_s: float) -> None:
        """Start to measure.

        Args:
            now_s: on ``time.monotonic()``'s clock, as everywhere here.
        """
        self._measured_s = now_s
        self._came = 0
        self._texts = 0
        self._work_s = 0.0
        self._text_s = 0.0
        self._refused = 0
        self._held: dict[str, tuple[int, float]] = {}

    def refused(self, texts: int) -> None:
        """Note texts that were refused before they came to the engine."""
        self._refused += texts

    def held_back(self, held: HeldBack, now_s: float) -> None:
        """Note what an ingress told."""
        self._refused += held.refused
        self._held[held.ingress] = held.waiting, now_s

    def measure(self, stats: EngineStats, now_s: float) -> dict[str, float]:
        """What happened since the last measurement.

        Returns:
            ``drain_s``: predicted seconds to serve what waits and runs here, at the widest N.
            ``held_s``: the same of what all ingresses hold back, for this replica alone.
            ``load``: the share of this replica's time that the texts that came take at the widest
            N; above 1 where they are more than it can serve.
        """
        elapsed_s = max(now_s - self._measured_s, 1e-3)
        came = stats.joined + stats.shed + self._refused
        if stats.texts > self._texts:
            self._text_s = (stats.work_s - self._work_s) / (stats.texts - self._texts)
        load = (came - self._came) * self._text_s / elapsed_s
        self._measured_s, self._came = now_s, came
        self._texts, self._work_s = stats.texts, stats.work_s
        self._held = {
            ingress: (texts, told_s)
            for ingress, (texts, told_s) in self._held.items()
            if now_s - told_s < _BELIEVED_S
        }
        held = sum(texts for texts, _ in self._held.values())
        return {"drain_s": stats.drain_s, "held_s": held * self._text_s, "load": load}
