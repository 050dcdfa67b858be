"""Which N load may choose from."""

import pytest

from muxserve.engine.config import EngineConfig
from muxserve.engine.widths import allowed_widths
from muxserve.errors import FamilyError
from muxserve.models.spec import FamilySpec, Member, Quality

WIDTHS = [1, 2, 5]


def spec(*qualities: float | None) -> FamilySpec:
    members = [
        Member(
            num_instances=n,
            path=".",
            quality=value
            if value is None
            else Quality(
                metric="accuracy",
                value=value,
                std=0.0,
                groupings=2,
                examples=10,
                dataset="x",
                measured_on="2026-01-01",
            ),
        )
        for n, value in zip(WIDTHS, qualities, strict=True)
    ]
    return FamilySpec(
        name="x", task="sequence-classification", labels=["a"], max_length=8, members=members
    )


def test_an_n_that_loses_too_much_is_left_out_of_what_load_may_choose():
    measured = spec(0.90, 0.85, 0.70)
    assert allowed_widths(measured, WIDTHS, EngineConfig()) == [1, 2]
    assert allowed_widths(measured, WIDTHS, EngineConfig(max_quality_loss=0.01)) == [1]
    assert allowed_widths(measured, WIDTHS, EngineConfig(max_quality_loss=1)) == [1, 2, 5]


def test_what_was_never_measured_is_not_left_out():
    assert allowed_widths(spec(None, None, None), WIDTHS, EngineConfig()) == WIDTHS


def test_a_pinned_n_is_served_whatever_it_loses():
    config = EngineConfig(num_instances=5)
    assert allowed_widths(spec(0.9, 0.8, 0.5), WIDTHS, config) == [5]


def test_a_cap_holds_too():
    config = EngineConfig(max_num_instances=4)
    assert allowed_widths(spec(0.9, 0.9, 0.9), WIDTHS, config) == [1, 2]


@pytest.mark.parametrize(
    ("config", "loaded"),
    [(EngineConfig(num_instances=3), WIDTHS), (EngineConfig(max_num_instances=1), [2, 5])],
)
def test_settings_that_leave_no_n_are_refused(config, loaded):
    with pytest.raises(FamilyError, match="num_instances"):
        allowed_widths(spec(None, None, None), loaded, config)
