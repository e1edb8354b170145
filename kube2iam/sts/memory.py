"""How long a failure is remembered, so that a loop of pods cannot hammer STS. Pure."""

from kube2iam.sts.errors import Kind

LONGEST_PERMANENT = 60.0
LONGEST_TRANSIENT = 10.0


def remembered(kind: Kind, failures: int, *, error_ttl: float, spread: float) -> float:
    """Seconds for which the `failures`-th failure in a row of one request answers for STS; `spread` in [0, 1).

    A permanent one: `error_ttl`, doubled each time up to 60 s (or `error_ttl`, if that is longer); 0 is not at all.
    A transient one: 1 s, doubled up to 10 s, less up to a quarter so that requests do not come back together.
    """
    doublings = 2.0 ** min(failures - 1, 10)
    if kind.permanent:
        return min(error_ttl * doublings, max(LONGEST_PERMANENT, error_ttl))
    return min(doublings, LONGEST_TRANSIENT) * (1 - spread / 4)
