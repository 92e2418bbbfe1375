"""Splitting shots into pieces that a device takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.hardware.shots import split_shots
from service.providers.base import Limits, RejectedError

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def limits(least: int, most: int | None, step: int) -> Limits:
    return Limits(least, most, step, 16, 50)


def possible_numbers_of_pieces(shots: int, least: int, most: int, step: int) -> list[int]:
    """By definition: n pieces can add up to `shots` if n smallest do not exceed it and n largest do not fall short."""
    sizes = [size for size in range(step, most + 1, step) if size >= least]
    if shots % step or not sizes:
        return []
    return [n for n in range(1, shots // sizes[0] + 1) if n * sizes[0] <= shots <= n * sizes[-1]]


@seeded
@given(st.integers(1, 400), st.integers(0, 60), st.integers(1, 120), st.integers(1, 16))
def test_split_is_the_fewest_pieces_that_the_device_takes_or_a_refusal_where_there_are_none(
    shots: int, least: int, most: int, step: int
) -> None:
    possible = possible_numbers_of_pieces(shots, least, most, step)
    if not possible:
        with pytest.raises(RejectedError):
            split_shots(shots, limits(least, most, step))
        return
    pieces = split_shots(shots, limits(least, most, step))
    assert len(pieces) == possible[0]
    assert sum(pieces) == shots
    assert all(piece % step == 0 and least <= piece <= most for piece in pieces)
    assert pieces == sorted(pieces, reverse=True)
    assert pieces[0] - pieces[-1] <= step


@pytest.mark.parametrize(
    ("shots", "most", "expected"),
    [
        (10_240, 8192, [5120, 5120]),
        (9216, 8192, [5120, 4096]),
        (8192, 8192, [8192]),
        (1024, 8192, [1024]),
        (20_480, 8192, [7168, 7168, 6144]),
        (10_240, 9000, [5120, 5120]),
        (10_240, None, [10_240]),
    ],
)
def test_split_on_baihua(shots: int, most: int | None, expected: list[int]) -> None:
    assert split_shots(shots, limits(1024, most, 1024)) == expected


@pytest.mark.parametrize("shots", [-1024, 0, 512, 1000, 1025, 10_000])
def test_shots_that_are_no_multiple_of_the_step_or_too_few_are_refused(shots: int) -> None:
    with pytest.raises(RejectedError, match=f"{shots} shots, expected a multiple of 1024 and at least 1024"):
        split_shots(shots, limits(1, 8192, 1024))


def test_pieces_that_would_be_too_small_are_refused() -> None:
    with pytest.raises(RejectedError, match="9216 shots cannot be split into pieces of 6144 to 8192"):
        split_shots(9216, limits(6144, 8192, 1024))


@pytest.mark.parametrize("most", [1, 1023])
def test_device_that_takes_less_than_one_step_is_refused(most: int) -> None:
    with pytest.raises(RejectedError, match="cannot be split"):
        split_shots(1024, limits(1, most, 1024))
