"""Which length to try next: it always ends, and never far from the longest allowed one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.sts.lengths import ALWAYS_ALLOWED, SHORTEST, STEP, UNKNOWN, Lengths

MOST_STEPS = 18
"""The length itself, ten halvings of twelve hours; where not even an hour is allowed, six more from 15 minutes up."""


def search(lengths: Lengths, wanted: int, longest: int) -> list[int]:
    """The lengths that are asked for until there is nothing to learn, or `ALWAYS_ALLOWED` itself is refused."""
    asked = []
    while not lengths.settled(wanted) or (lengths.next(wanted) > longest >= SHORTEST):
        length = lengths.next(wanted)
        asked.append(length)
        if length <= longest:
            lengths.grant(length)
        else:
            lengths.refuse(length, 0)
        assert len(asked) <= MOST_STEPS, (lengths, asked)
    return asked


@given(wanted=st.integers(SHORTEST, 43_200), longest=st.integers(SHORTEST, 43_200))
def test_the_search_ends_within_a_minute_of_the_longest_allowed_length(wanted: int, longest: int) -> None:
    lengths = Lengths()
    search(lengths, wanted, longest)
    best = lengths.next(wanted)
    assert min(wanted, longest) - STEP < best <= min(wanted, longest)
    assert best == wanted or best % STEP == 0 or best == lengths.allowed


@given(first=st.integers(SHORTEST, 43_200), second=st.integers(SHORTEST, 43_200), longest=st.integers(3600, 43_200))
def test_what_one_length_taught_serves_the_other(first: int, second: int, longest: int) -> None:
    lengths = Lengths()
    search(lengths, first, longest)
    search(lengths, second, longest)
    assert lengths.allowed < lengths.refused
    assert search(lengths, first, longest) == []
    assert min(second, longest) - STEP < lengths.next(second) <= min(second, longest)


@given(before=st.integers(3600, 43_200), after=st.integers(3600, 43_200))
def test_a_maximum_that_was_changed_is_found_anew(before: int, after: int) -> None:
    """A lower one by the next refusal, a higher one by the next minute's success."""
    lengths, wanted = Lengths(), 43_200
    search(lengths, wanted, before)
    probe = min(wanted, lengths.next_minute) if after >= lengths.next(wanted) else lengths.next(wanted)
    if probe <= after:
        lengths.grant(probe)
    else:
        lengths.refuse(probe, 0)
    search(lengths, wanted, after)
    assert after - STEP < lengths.next(wanted) <= after


@pytest.mark.parametrize(("named", "allowed"), [(3600, 3600), (5000, 5000), (0, ALWAYS_ALLOWED), (7200, 3600)])
def test_sts_is_taken_at_its_word_where_it_names_a_number(named: int, allowed: int) -> None:
    lengths = Lengths()
    lengths.refuse(7200, named)
    assert lengths.allowed == allowed
    assert lengths.settled(7200) is (0 < named < 7200)


@pytest.mark.parametrize("wanted", [3601, 3659, 3660, 3661, 3700, 3719, 3720])
def test_less_than_two_minutes_above_an_hour_ends_too(wanted: int) -> None:
    lengths = Lengths()
    assert len(search(lengths, wanted, 3600)) <= 2
    assert lengths.next(wanted) == 3600


def test_nothing_is_refused_to_begin_with() -> None:
    assert Lengths().next(43_200) == 43_200 < UNKNOWN
