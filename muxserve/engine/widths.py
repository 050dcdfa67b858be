"""Which N the load may choose from, by the settings and the measured quality."""

import logging
from collections.abc import Sequence

from muxserve.engine.config import EngineConfig
from muxserve.errors import FamilyError
from muxserve.models.family import FamilySpec

log = logging.getLogger(__name__)


def allowed_widths(spec: FamilySpec, loaded: Sequence[int], config: EngineConfig) -> list[int]:
    """The pinned N alone, or every N within the cap and within the allowed loss of quality.

    A member whose quality was never measured is not left out.

    Args:
        spec: the family's description.
        loaded: every N that is loaded, ascending.
        config: pin, cap and allowed loss.

    Raises:
        FamilyError: if the settings leave no N.
    """
    pinned, cap = config.num_instances, config.max_num_instances
    if pinned is not None:
        if pinned not in loaded:
            raise FamilyError(
                f"num_instances {pinned} is not in the family: {list(loaded)}",
                field="num_instances",
            )
        return [pinned]
    if cap is not None and cap < loaded[0]:
        raise FamilyError(
            f"max_num_instances {cap} is below the family's narrowest, {loaded[0]}",
            field="max_num_instances",
        )
    allowed = []
    for n in loaded:
        loss = quality_loss(spec, n)
        if loss is not None and loss > config.max_quality_loss:
            log.info(
                "N=%d is left out: its measured quality is %.3f below the narrowest member's, "
                "more than max_quality_loss (%g) allows",
                n,
                loss,
                config.max_quality_loss,
            )
        elif cap is None or n <= cap:
            allowed.append(n)
    return allowed


def quality_loss(spec: FamilySpec, n: int) -> float | None:
    """How far the measured quality at N=n is below the narrowest member's; None if unmeasured."""
    measured = {member.num_instances: member.quality for member in spec.members}
    narrowest, own = spec.members[0].quality, measured[n]
    if narrowest is None or own is None:
        return None
    return narrowest.value - own.value
