"""Quality against throughput, one point per N: what a family gains, and what it pays for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """One member.

    Attributes:
        num_instances: N.
        texts_per_s: of the offline loop.
        quality: mean over the groupings.
        std: its standard deviation.
        ensembled: quality with free slots filled.
    """

    num_instances: int
    texts_per_s: float
    quality: float
    std: float
    ensembled: float


def draw(points: Sequence[Point], metric: str, title: str, file: Path) -> None:
    """Write the figure; the file's ending says the format (.svg, .png, .pdf).

    Raises:
        ValueError: where matplotlib is missing, or cannot write this format.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("a figure needs matplotlib: pip install 'muxserve[training]'") from None
    matplotlib.use("agg")
    # The same figure from the same points, byte for byte.
    matplotlib.rcParams["svg.hashsalt"] = "muxserve"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    rates = [one.texts_per_s for one in points]
    axes.errorbar(
        rates,
        [100 * one.quality for one in points],
        yerr=[100 * one.std for one in points],
        marker="o",
        capsize=3,
        label="each text once",
    )
    axes.plot(
        rates,
        [100 * one.ensembled for one in points],
        marker="x",
        linestyle=":",
        label="averaged over free slots",
    )
    for one in points:
        axes.annotate(
            f"N={one.num_instances}",
            (one.texts_per_s, 100 * one.quality),
            xytext=(4, -12),
            textcoords="offset points",
        )
    axes.set(title=title, xlabel="texts per second, offline", ylabel=f"{metric} (%)", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    finally:
        pyplot.close(figure)
