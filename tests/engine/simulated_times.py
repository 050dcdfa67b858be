"""Forward times that follow a known line, for tests of the policy and the planner."""

from muxserve.engine.times import ForwardTimes


def linear_times(widths=(1, 2, 5), per_token=1e-5, fixed=1e-3, noise=None) -> ForwardTimes:
    """Times linear in groups and tokens; ``noise`` maps an N to a factor of all of its times."""
    times = ForwardTimes([16, 32, 64], [1, 2, 4, 8])
    for n in widths:
        for length in times.lengths:
            factor = (noise or {}).get(n, 1.0)
            times.set(n, length, [factor * (fixed + per_token * length * g) for g in times.groups])
    return times
