"""One set of weights for every N: multiplexed distillation from soft labels.

Each step trains N=1 and one larger N (the sandwich rule of slimmable networks, Yu and Huang, ICCV
2019; MIMONets, Menet et al., NeurIPS 2023, switches N within one network the same way). The targets
are a teacher's soft labels, and for the larger N also the states that the same network has for the
same text at N=1, position by position: a signal far denser than a label. The token-retrieval loss
of the paper leads at the start, as in its warm-up stage, and fades to an auxiliary one. A run can
be stopped and resumed: its state is written to one file, under a temporary name first.
"""

import logging
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from muxserve.training.curves import Curves
from muxserve.training.data.batches import near_length_batches, pad_batch
from muxserve.training.distil.goals import Goals, soft_cross_entropy
from muxserve.training.distil.schedule import linear_schedule
from muxserve.training.pretrained import Student
from muxserve.training.recipe import DistillSettings
from muxserve.training.work_folder import written_whole

log = logging.getLogger(__name__)

#: Steps between two points of the curves of losses.
CURVE_STEPS = 50


def distill(
    model: Student,
    rows: Sequence[Sequence[int]],
    goals: Goals,
    settings: DistillSettings,
    state_file: Path,
    *,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
) -> Student:
    """Train every width of ``model`` on token ids ``rows`` towards their ``goals``.

    Losses and figures go to a folder ``tensorboard`` beside the state file. Ctrl-C waits for the
    end of the step and saves the state.

    Args:
        model: a multiplexed classifier with a retrieval head; trained in place.
        rows: token ids of each text.
        goals: of each text, or of each of its tokens.
        settings: see DistillSettings.
        state_file: where the run's state is saved; an existing one is resumed.
        evaluate: called with the step every ``evaluate_every`` steps; returns figures by name.
        evaluate_every: steps between two calls.

    Raises:
        OSError: naming the file, if the state or the curves cannot be written.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings), weight_decay=0.01)
    schedule = linear_schedule(optimizer, settings.steps, settings.warm_up_share)
    first = _resume(state_file, model, optimizer, schedule)
    # Batches are a function of the seed and the step, so a resumed run continues where it stopped.
    lengths = [len(row) for row in rows]
    wide = [n for n in model.config.served_widths if n > 1]
    batches = {
        n: near_length_batches(lengths, settings.groups * n, random.Random(settings.seed + n))
        for n in wide
    }
    saved_at = time.monotonic()
    running: dict[str, float] = {}
    done, whole = first, True
    with (
        Curves(state_file.parent / "tensorboard") as curves,
        tqdm(range(settings.steps), desc="distil", unit="step", mininterval=2) as progress,
    ):
        try:
            for step in progress:
                n = _width_of_step(wide, step, settings, rng)
                picked = next(batches[n])
                if step < first:
                    continue
                # In the middle of an update there is no state worth saving.
                with _interrupt_held():
                    whole = False
                    losses = _step(model, rows, goals, picked, n, step, settings)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    done, whole = step + 1, True
                _average(running, losses, n)
                progress.set_postfix(
                    {name: f"{value:.3f}" for name, value in sorted(running.items())}
                )
                if done % CURVE_STEPS == 0:
                    curves.add(done, {f"loss/{name}": one for name, one in running.items()})
                if time.monotonic() - saved_at > settings.save_every_s:
                    _save(state_file, done, model, optimizer, schedule)
                    saved_at = time.monotonic()
                if evaluate and done % evaluate_every == 0:
                    told = " ".join(
                        f"{name} {value:.4g}" for name, value in sorted(running.items())
                    )
                    log.info("step %d losses: %s", done, told)
                    model.eval()
                    curves.add(done, evaluate(done))
        except KeyboardInterrupt:
            if whole:
                _save(state_file, done, model, optimizer, schedule)
                log.info("stopped after step %d; the same command goes on from there", done)
            raise
    _save(state_file, settings.steps, model, optimizer, schedule)
    return model.eval()


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block; a second one ends it at once."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before):
        yield  # only the main thread is interrupted
        return
    asked = False

    def keep(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _average(running: dict[str, float], losses: dict[str, float], n: int) -> None:
    """Add the losses of a step at N=n to their running averages."""
    for name, value in losses.items():
        key = name if name == "single" else f"{name}{n}"
        # If no token of a batch was drawn, it has no retrieval loss.
        if math.isfinite(value):
            running[key] = 0.95 * running.get(key, value) + 0.05 * value


def _width_of_step(
    wide: list[int], step: int, settings: DistillSettings, rng: random.Random
) -> int:
    """Pick the N of a step.

    Narrow widths come first: they are learnt quickly, and wide ones build on them.
    """
    share = step / max(1, settings.retrieval_share * settings.steps)
    pick = rng.random()
    if share < 0.15:
        return wide[0]
    if share < 0.4 and len(wide) > 1:
        return wide[0] if pick < 0.25 else wide[1]
    return wide[int(pick * len(wide))]


def _step(
    model: Student,
    rows: Sequence[Sequence[int]],
    goals: Goals,
    picked: list[int],
    n: int,
    step: int,
    settings: DistillSettings,
) -> dict[str, float]:
    """Compute the gradients of one step, clipped; its losses by name."""
    model.train()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
        losses = _losses(model, rows, goals, picked, n, settings)
    lead = step < settings.retrieval_share * settings.steps
    loss = (
        losses["single"]
        + losses["task"]
        + (1.0 if lead else settings.retrieval_weight) * losses["retrieval"]
        + settings.state_weight * losses["states"]
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return {name: value.item() for name, value in losses.items()}


def _losses(
    model: Student,
    rows: Sequence[Sequence[int]],
    goals: Goals,
    picked: list[int],
    n: int,
    settings: DistillSettings,
) -> dict[str, torch.Tensor]:
    """Losses of one step: all of ``picked`` at N=n, and the first few of them at N=1 too."""
    pad_id = model.config.pad_token_id or 0
    alone = picked[: settings.single_texts]
    ids, mask = pad_batch([rows[i] for i in alone], pad_id, device=model.device)
    single = model.encode(ids, mask, 1)
    wide_ids, wide_mask = pad_batch([rows[i] for i in picked], pad_id, device=model.device)
    wide = model.encode(wide_ids, wide_mask, n)
    single_logits, _ = model.classify(single)
    wide_logits, separated = model.classify(wide)

    goal = single.states.detach().float()
    same = model.project(wide, separated[: len(alone), : ids.shape[1]]).float()
    tokens = mask.bool()
    miss = (same - goal)[tokens].square().mean()
    return {
        "single": soft_cross_entropy(
            single_logits, *goals.batch(alone, ids.shape[1], model.device), settings.temperature
        ),
        "task": soft_cross_entropy(
            wide_logits, *goals.batch(picked, wide_ids.shape[1], model.device), settings.temperature
        ),
        "retrieval": model.retrieval_loss(wide),
        # Over the goal's own spread: 1 is no better than guessing the mean.
        "states": miss / goal[tokens].var(),
    }


def _parameter_groups(model: Student, settings: DistillSettings) -> list[dict[str, object]]:
    pretrained = list(model.backbone.parameters())
    known = {id(p) for p in pretrained}
    new = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    return [
        {"params": pretrained, "lr": settings.encoder_learning_rate},
        {"params": new, "lr": settings.new_learning_rate},
    ]


def _save(
    file: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as temporary:
        torch.save(
            {
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "rng": torch.get_rng_state(),
            },
            temporary,
        )


def _resume(
    file: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Load a saved state if there is one; the step to continue with."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["rng"])
    log.info("resumed %s at step %d", file, state["step"])
    return int(state["step"])
