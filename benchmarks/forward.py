"""What one multiplexed forward costs, and where: texts/s, FLOP/s, and the share of each stage.

Needs torch and transformers only, so that it runs on a GPU machine that has no Ray:

    python benchmarks/forward.py                      # CPU, or the GPU where there is one
    python benchmarks/forward.py --sizes base --lengths 128 --json

Weights are random: they change no time. The plain `transformers` classifier of the same size is
measured in the same run, and every gain is a ratio to it. FLOPs are counted by torch's own counter.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, BertForSequenceClassification
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout does; nothing is to be installed

from muxserve.measure.machine import describe
from muxserve.models import MuxBertConfig, MuxBertForSequenceClassification

ROOT = Path(__file__).parents[1]
WIDTHS = [1, 2, 5, 10]
#: The paper's network at BERT-base size, as released: RSA demultiplexer at position 0, no mask.
BASE = {
    "num_hidden_demux_layers": 3,
    "encoder_mask": "none",
    "padding": "max_length",
}
#: Tokens that the encoder sees in one forward: enough to fill the device.
TOKENS = {"cpu": 1024, "cuda": 131_072}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Row:
    """One line of the table; shares are of the encoder's time."""

    size: str
    network: str
    length: int
    num_instances: int
    groups: int
    texts_per_s: float
    gain_over_plain: float
    flops_per_s: float
    mix_over_encoder: float | None = None
    demux_over_encoder: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=["base", "shipped"], default=["base", "shipped"]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--repeats", type=int, default=7, help="timed forwards, the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 else")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="also write JSON to this file")
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dtype = DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")]

    rows: list[Row] = []
    for size in args.sizes:
        for length in args.lengths:
            for row in measure_size(size, length, device, dtype, args.repeats):
                rows.append(row)
                print(_line(row), file=sys.stderr, flush=True)
    settings = {"dtype": str(dtype).removeprefix("torch."), "device": str(device)}
    if device.type == "cpu":
        settings["threads"] = str(torch.get_num_threads())
    result = {"machine": {**describe(), **settings}, "rows": [asdict(row) for row in rows]}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if args.json else _table(rows))


def measure_size(
    size: str, length: int, device: torch.device, dtype: torch.dtype, repeats: int
) -> list[Row]:
    """Every N of one size at one length, the plain model first."""
    config = _config(size)
    groups = max(1, TOKENS[device.type] // length)
    plain_config = BertConfig.from_dict({**config.to_dict(), "model_type": "bert"})
    plain = BertForSequenceClassification(plain_config).to(device, dtype).eval()
    model = MuxBertForSequenceClassification(config).to(device, dtype).eval()

    ids, mask = _texts(config, groups, length, device)
    seconds, flops = _timed(lambda: plain(ids, mask), device, repeats)
    base_rate = groups / seconds
    rows = [Row(size, "plain", length, 1, groups, base_rate, 1.0, flops / seconds)]
    for n in WIDTHS:
        ids, mask = _texts(config, groups * n, length, device)
        seconds, flops = _timed(lambda: model(ids, mask, num_instances=n), device, repeats)  # noqa: B023
        rate = groups * n / seconds
        row = Row(size, "multiplexed", length, n, groups, rate, rate / base_rate, flops / seconds)
        if n > 1:
            row.mix_over_encoder, row.demux_over_encoder = _shares(
                model, ids, mask, n, device, repeats
            )
        rows.append(row)
    return rows


def _config(size: str) -> MuxBertConfig:
    if size == "shipped":
        return AutoConfig.from_pretrained(ROOT / "muxserve" / "families" / "sentiment" / "weights")
    return MuxBertConfig(num_instances=WIDTHS[-1], widths=WIDTHS, plain_single=True, **BASE)


def _texts(
    config: MuxBertConfig, rows: int, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts without padding, so that every token counted is a token of a text."""
    ids = torch.randint(1000, config.vocab_size, (rows, length), device=device)
    return ids, torch.ones_like(ids)


def _shares(
    model: MuxBertForSequenceClassification,
    ids: torch.Tensor,
    mask: torch.Tensor,
    n: int,
    device: torch.device,
    repeats: int,
) -> tuple[float, float]:
    """Time of embedding and multiplexing, and of demultiplexing and head, over the encoder's."""
    read = 1 if model.config.pooling == "first" else None
    with torch.inference_mode():
        muxed = model.mix(ids, mask, n)
        encoded = model.encode(ids, mask, n, read=read)
    mix, _ = _timed(lambda: model.mix(ids, mask, n), device, repeats)
    encoder, _ = _timed(lambda: model.encode_mixture(muxed, mask, n, read), device, repeats)
    demux, _ = _timed(lambda: model.classify(encoded), device, repeats)
    return mix / encoder, demux / encoder


def _timed(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a forward, and its FLOPs."""
    seconds = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            run()
        for _ in range(2):
            run()
        for _ in range(repeats):
            _wait(device)
            at = time.perf_counter()
            run()
            _wait(device)
            seconds.append(time.perf_counter() - at)
    return statistics.median(seconds), float(counter.get_total_flops())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _line(row: Row) -> str:
    return (
        f"{row.size} {row.network} length {row.length} N={row.num_instances}: "
        f"{row.texts_per_s:,.0f} texts/s, {row.gain_over_plain:.2f}x"
    )


def _table(rows: list[Row]) -> str:
    lines = [
        "| size | length | N | texts/s | over plain | GFLOP/s | embedding + mux / encoder "
        "| demux + head / encoder |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        n = "plain" if row.network == "plain" else str(row.num_instances)
        shares = [
            "" if share is None else f"{share:.1%}"
            for share in (row.mix_over_encoder, row.demux_over_encoder)
        ]
        lines.append(
            f"| {row.size} | {row.length} | {n} | {row.texts_per_s:,.0f} | "
            f"{row.gain_over_plain:.2f} | {row.flops_per_s / 1e9:,.0f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
