"""Shots that a device does not take in one piece."""

from __future__ import annotations

from service.providers.base import Limits, RejectedError


def split_shots(shots: int, limits: Limits) -> list[int]:
    """The fewest pieces that the device takes, as equal as its step allows, the larger first.

    Raises:
        RejectedError: If no pieces add up to `shots`.
    """
    step, least = limits.shots_step, max(limits.min_shots, limits.shots_step)
    if shots % step or shots < least:
        raise RejectedError(f"{shots} shots, expected a multiple of {step} and at least {least}")
    most = shots if limits.max_shots is None else limits.max_shots - limits.max_shots % step
    n_pieces = -(-shots // max(most, step))
    steps, more = divmod(shots // step, n_pieces)
    pieces = [(steps + 1) * step] * more + [steps * step] * (n_pieces - more)
    if pieces[-1] < least or pieces[0] > most:
        raise RejectedError(f"{shots} shots cannot be split into pieces of {least} to {most}")
    return pieces
