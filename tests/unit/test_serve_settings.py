"""Settings: flag over variable over default; bad values are named."""

from pathlib import Path

import pytest

from nestling.errors import UsageError
from nestling.server.settings import ServeSettings, TokenInput, read_settings


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"NESTLING_PORT": "9000", "NESTLING_HOST": "0.0.0.0", "NESTLING_MODEL": "a, b"}
    found = read_settings({"port": 9001, "host": None}, environ)
    assert (found.port, found.host, found.model, found.max_inputs) == (9001, "0.0.0.0", ("a", "b"), 2048)


def test_the_defaults_listen_on_loopback_without_keys_or_cache() -> None:
    found = read_settings({}, {})
    assert found == ServeSettings()
    assert (found.host, found.api_key, found.cache_mb, found.token_input) == ("127.0.0.1", (), 0, TokenInput.REJECT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"),
        ("port", 70_000),
        ("threads", 0),
        ("token_input", "gpt"),
        ("preload", "maybe"),
        ("engine", "torch"),
        ("api_key", ""),
        ("max_inputs", -1),
        ("colour", "red"),
    ],
)
def test_a_bad_value_names_its_setting(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name if name != "colour" else "no such setting: colour"):
        read_settings({name: value}, {})


def test_a_variable_that_kubernetes_sets_for_a_service_of_our_name_is_not_a_port() -> None:
    assert read_settings({}, {"NESTLING_PORT": "tcp://10.0.0.7:8080"}).port == 8080


def test_keys_come_from_a_file_too_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\n zwei \n", "utf-8")
    assert read_settings({"api_key_file": keys, "api_key": ["zero"]}, {}).api_key == ("zero", "one", "zwei")
    keys.write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_settings({}, {"NESTLING_API_KEY_FILE": str(keys)})
    with pytest.raises(UsageError, match="api_key_file"):
        read_settings({"api_key_file": tmp_path / "none"}, {})


def test_keys_are_not_in_the_repr() -> None:
    assert "sesame" not in repr(read_settings({"api_key": "sesame"}, {}))


def test_an_alias_without_a_target_means_the_first_model() -> None:
    found = read_settings({"model": ["a", "b"], "alias": ["text-embedding-3-small", "x=b"]}, {})
    assert found.aliases == {"text-embedding-3-small": "a", "x": "b"}
