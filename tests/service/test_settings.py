"""Which settings there are, what they accept and that they are documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.bundle import SHIPPED
from service.errors import SettingsError
from service.settings import Settings, load_settings, settings_table

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"QD_{name.upper()}", raising=False)


def test_readme_holds_every_line_of_the_table() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert [line for line in settings_table().splitlines() if line not in lines] == []


def test_table_has_a_row_with_a_meaning_for_every_setting_and_no_path_of_this_machine() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    assert all(row.startswith("| `QD_") and len(row.split("|")[3]) > 10 for row in rows)
    assert str(SHIPPED.parents[1]) not in settings_table()


def test_environment_sets_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QD_PORT", "9001")
    monkeypatch.setenv("QD_HOST", "0.0.0.0")
    settings = load_settings(port="9002")
    assert (settings.host, settings.port) == ("0.0.0.0", 9002)


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QD_PORT", "")
    assert load_settings().port == 8000


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().port = 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("QD_PORT", "99999", "less than or equal to 65535"),
        ("QD_PORT", "http", "valid integer"),
        ("QD_ENGINE", "qiskit", "'compiled' or 'mindquantum'"),
        ("QD_DEFAULT_BACKEND", "qpu", "'simulator' or 'baihua'"),
        ("QD_MAX_TEXTS", "0", "greater than or equal to 1"),
        ("QD_LOG_LEVEL", "loud", "'debug'"),
        ("QD_QUAFU_PROVIDER", "ibm", "'quafu' or 'quafu_sqc'"),
        ("QD_QUAFU_COMPILER", "qiskit", "'chain' or 'server'"),
        ("QD_QUAFU_CHAIN", "1,2,3", "at least 11 different numbers"),
        ("QD_QUAFU_CHAIN", "1,1,2,3,4,5,6,7,8,9,10", "at least 11 different numbers"),
        ("QD_QUAFU_CHAIN", "1,2,3,4,5,6,7,8,9,10,x", "at least 11 different numbers"),
        ("QD_SHOTS", "0", "greater than or equal to 1024"),
        ("QD_SHOTS", "1500", "multiple of 1024"),
    ],
)
def test_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}: ")
    assert words in message
    assert "\n" not in message


def test_misspelt_variable_is_refused_with_the_name_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QD_MAX_TEXT", "5")
    with pytest.raises(SettingsError, match=r"QD_MAX_TEXT is no setting, did you mean QD_MAX_TEXTS\?"):
        load_settings()


def test_variable_that_resembles_no_setting_is_refused_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QD_XYZ", "5")
    with pytest.raises(SettingsError, match=r"QD_XYZ is no setting: \['QD_HOST', 'QD_PORT', "):
        load_settings()


def test_queue_must_hold_a_whole_request() -> None:
    with pytest.raises(SettingsError, match=r"^QD_MAX_QUEUED_TEXTS is 5, expected at least QD_MAX_TEXTS \(10\)$"):
        load_settings(max_texts=10, max_queued_texts=5)


@pytest.mark.parametrize("value", ["ftp://user:hunter2@host", "hunter2", "http://[hunter2"])
def test_wrong_address_is_refused_without_what_may_be_a_password(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QD_QUAFU_URL", value)
    with pytest.raises(SettingsError, match=r"^QD_QUAFU_URL: ") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_token_comes_from_the_environment_or_a_file_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QD_QUAFU_TOKEN", "qf_hunter2")
    settings = load_settings()
    assert settings.token() == "qf_hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
    file = tmp_path / "token"
    file.write_text("qf_hunter3\n")
    monkeypatch.setenv("QD_QUAFU_TOKEN_FILE", str(file))
    with pytest.raises(SettingsError, match="both set"):
        load_settings()
    monkeypatch.delenv("QD_QUAFU_TOKEN")
    assert load_settings().token() == "qf_hunter3"


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_token_file_that_gives_no_token_is_an_error_that_does_not_show_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "qf_hunter2"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("QD_QUAFU_TOKEN_FILE", str(file))
    with pytest.raises(SettingsError, match=r"^QD_QUAFU_TOKEN_FILE: ") as caught:
        load_settings().token()
    assert "hunter2" not in str(caught.value)


def test_no_token_at_all_is_an_error_that_says_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="QD_QUAFU_TOKEN or QD_QUAFU_TOKEN_FILE"):
        load_settings().token()
