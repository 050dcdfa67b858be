"""How a learning rate goes over the steps of a run."""

import torch


def linear_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warm_up_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Up to the optimiser's own rates over a share of the steps, then down to 0 at the last."""
    warm_up = max(1, int(warm_up_share * steps))
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm_up, (steps - s) / max(1, steps - warm_up))
    )
