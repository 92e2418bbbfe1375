"""Fingerprints and keys: what is equal for circuits that can stand in for one another, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.circuit import Circuit, Gate, student_circuit
from models.errors import UnboundParameterError
from service.hardware.target import Target, angles_key, counts_key, fingerprint, refusal_key, target
from service.providers.base import ProviderName

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=60)

ON = target(ProviderName.QUAFU, None, "Baihua")
TEXT = "the cat sat on the mat"


def circuit(*angles: float) -> Circuit:
    """R_Y of each angle, one after the other, then a CZ."""
    return Circuit(2, (*(Gate("ry", (0,), angle) for angle in angles), Gate("cz", (0, 1))))


def sha(*angles: float, shots: int = 10_240, on: Target = ON, compiler: str = "chain", epoch: str = "") -> str:
    return fingerprint(circuit(*angles), shots, on, compiler, epoch)


# Far enough from where the twelfth decimal is rounded up.
@seeded
@given(st.integers(-7 * 10**12, 7 * 10**12).filter(bool), st.floats(-0.49, 0.49))
def test_angles_that_are_equal_to_twelve_decimals_have_one_fingerprint(units: int, offset: float) -> None:
    angle = units * 1e-12
    assert sha(angle) == sha(angle + 0.8 * offset * 1e-12)
    assert sha(angle) != sha((units + 1) * 1e-12)


def test_fingerprint_is_64_hexadecimal_digits_and_the_same_in_every_process() -> None:
    # Another value would orphan every cached result: raise SCHEMA_VERSION if that is meant.
    assert sha(0.5) == "190051e57702b7ee4dbf18540595d124a598503f60b377d1be0860e4baa2d8ab"


@pytest.mark.parametrize(
    "change",
    [
        {"shots": 9216},
        {"on": target(ProviderName.QUAFU_SQC, None, "Baihua")},
        {"on": target(ProviderName.QUAFU, None, "Dongling")},
        {"on": target(ProviderName.QUAFU, "https://quafu.example", "Baihua")},
        {"compiler": "server"},
        {"epoch": "cal-2"},
    ],
)
def test_whatever_changes_the_counts_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert sha(0.5, **change) != sha(0.5)  # type: ignore[arg-type]


def test_rotations_that_fuse_to_one_have_its_fingerprint() -> None:
    assert sha(0.1, 0.2) == sha(0.1 + 0.2) == sha(0.3)
    assert sha(0.1, 0.2) != sha(0.1, 0.3)


@pytest.mark.parametrize(
    "other",
    [
        Circuit(3, circuit(0.5).gates),
        Circuit(2, circuit(0.5).gates[::-1]),
        Circuit(2, (Gate("rx", (0,), 0.5), Gate("cz", (0, 1)))),
        Circuit(2, (Gate("ry", (1,), 0.5), Gate("cz", (0, 1)))),
        Circuit(2, (Gate("ry", (0,), 0.5), Gate("cx", (0, 1)))),
    ],
)
def test_another_circuit_has_another_fingerprint(other: Circuit) -> None:
    assert fingerprint(other, 10_240, ON, "chain") != sha(0.5)


def test_circuit_with_a_symbol_has_no_fingerprint() -> None:
    with pytest.raises(UnboundParameterError):
        fingerprint(student_circuit("chain", 2, 1), 10_240, ON, "chain")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "http://127.0.0.1:65535/",
        "http://127.8.9.1:80/api",
        "http://[::1]:80",
        "http://localhost:80",
    ],
)
def test_loopback_addresses_of_any_port_are_one_target(url: str) -> None:
    assert target(ProviderName.QUAFU, url, "Baihua") == Target(ProviderName.QUAFU, "loopback", "Baihua")


def test_remote_addresses_are_each_a_target_of_its_own() -> None:
    urls = [
        None,
        "http://127.0.0.1:80",
        "https://a.example",
        "https://b.example",
        "https://a.example:8443",
        "http://10.0.0.1",
    ]
    targets = [target(ProviderName.QUAFU, url, "Baihua") for url in urls]
    assert len({one.id for one in targets}) == len(urls)
    assert len({sha(0.5, on=one) for one in targets}) == len(urls)


def test_slash_at_the_end_of_an_address_makes_no_other_target() -> None:
    assert target(ProviderName.QUAFU, "https://a.example/", "Baihua") == target(
        ProviderName.QUAFU, "https://a.example", "Baihua"
    )


@pytest.mark.parametrize("url", ["http://localhost.example", "http://127.0.0.1.example", "http://example/127.0.0.1"])
def test_remote_address_that_looks_like_loopback_is_remote(url: str) -> None:
    assert target(ProviderName.QUAFU, url, "Baihua").endpoint == url


def test_target_id_is_stable_and_part_of_its_prefix_as_one_cluster_slot() -> None:
    assert target(ProviderName.QUAFU, None, "Baihua").id == ON.id
    assert len(ON.id) == 12
    assert int(ON.id, 16) >= 0
    assert ON.prefix == f"qd:v1:{{{ON.id}}}:"


def test_keys_of_one_circuit_share_a_cluster_slot_and_differ() -> None:
    assert counts_key("ab") == "qd:v1:{ab}:res"
    assert refusal_key("ab") == "qd:v1:{ab}:err"


def test_key_of_a_texts_angles_depends_on_bundle_and_text_and_shows_neither_word() -> None:
    key = angles_key("emotion@1", TEXT)
    assert not any(word in key for word in ("cat", "mat", "emotion"))
    others = [angles_key("emotion@2", TEXT), angles_key("emotion@1", TEXT + " "), angles_key("emotion@1" + TEXT, "")]
    assert len({key, *others}) == 4
    # The boundary between bundle and text counts.
    assert angles_key("a", "bc") != angles_key("ab", "c")
