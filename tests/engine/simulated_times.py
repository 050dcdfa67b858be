"""Forward times that follow a known line, for tests of the policy and the planner."""

from muxserve.engine.times import ForwardTimes


def linear_times(widths=(1, 2, 5), per_token=1e-5, fixed=1e-3) -> ForwardTimes:
    times = ForwardTimes([16, 32, 64], [1, 2, 4, 8])
    for n in widths:
        for length in times.lengths:
            times.set(n, length, [fixed + per_token * length * g for g in times.groups])
    return times
