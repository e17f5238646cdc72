"""Settings: flag over variable over default; bad values are named."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nestling.cli.commands import app
from nestling.engine.names import EngineName
from nestling.errors import UsageError
from nestling.server.setting_values import TokenInput
from nestling.server.settings import (
    SETTINGS,
    ServeSettings,
    flag,
    markdown_table,
    read_settings,
    shown_default,
    variable,
)


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
        ("engine", "cuda"),
        ("arithmetic", "int8"),
        ("device", "gpu"),
        ("device", "cuda:0,cuda:0"),
        ("device", "cuda:0,cpu"),
        ("device", "cuda:0,"),
        ("api_key", ""),
        ("max_inputs", -1),
        ("colour", "red"),
    ],
)
def test_a_bad_value_names_its_setting(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=flag(name) if name != "colour" else "no such setting: colour"):
        read_settings({name: value}, {})
    if name != "colour" and value != "":
        with pytest.raises(UsageError, match=f"^{variable(name)}"):
            read_settings({}, {variable(name): str(value)})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("PROT", "PORT"), ("API_KEYS", "API_KEY"), ("MAX_INPUT", "MAX_INPUTS"), ("CORS_ORIGINS", "CORS_ORIGIN")],
)
def test_a_misspelt_variable_is_refused_with_the_right_spelling(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=f"^NESTLING_{wrong}: no such variable; did you mean NESTLING_{right}\\?$"):
        read_settings({}, {f"NESTLING_{wrong}": "1"})


def test_variables_of_others_are_left_alone() -> None:
    others = ("NESTLING_CACHE", "NESTLING_SERVICE_HOST", "NESTLING_PORT_80_TCP", "NESTLING_UNRELATED", "PORT")
    assert read_settings({}, dict.fromkeys(others, "x")) == ServeSettings()


@pytest.mark.parametrize(("name", "value"), [("engine", "openvno"), ("token_input", "modl")])
def test_a_misspelt_choice_is_refused_with_the_right_one(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=r"expected one of .*; did you mean (openvino|model)\?"):
        read_settings({name: value}, {})


def test_a_key_is_not_repeated_in_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        read_settings({"api_key": " , "}, {})
    assert str(caught.value) == "--api-key: expected at least one value"


def test_every_setting_is_in_the_help_and_in_the_documentation_with_its_default() -> None:
    """The three places that a default can be read in say what the settings say."""
    document = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["serve", "--help"]).output
    help_page = " ".join(shown.replace("│", " ").split())
    assert markdown_table() in document, "paste nestling.server.settings.markdown_table() into docs/server.md"
    for name, setting in SETTINGS.items():
        assert flag(name) in help_page
        assert f"[default: ({shown_default(name)})]" in help_page.partition(setting.help)[2][:120], name
    for one in fields(ServeSettings):
        if one.default not in (None, (), False, MISSING) or one.default == 0:
            value = one.default if not isinstance(one.default, tuple) else ",".join(one.default)
            assert shown_default(one.name) in (str(value), "no"), one.name


def test_the_engines_that_the_help_names_are_those_there_are() -> None:
    assert all(name in SETTINGS["engine"].help for name in EngineName)


def test_a_variable_that_kubernetes_sets_for_a_service_of_our_name_is_not_a_port() -> None:
    assert read_settings({}, {"NESTLING_PORT": "tcp://10.0.0.7:8080"}).port == 8080


def test_keys_come_from_a_file_too_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\n zwei \n", "utf-8")
    assert read_settings({"api_key_file": keys, "api_key": ["zero"]}, {}).api_key == ("zero", "one", "zwei")
    keys.write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_settings({}, {"NESTLING_API_KEY_FILE": str(keys)})
    with pytest.raises(UsageError, match="--api-key-file"):
        read_settings({"api_key_file": tmp_path / "none"}, {})


def test_keys_are_not_in_the_repr() -> None:
    assert "sesame" not in repr(read_settings({"api_key": "sesame"}, {}))


def test_an_alias_without_a_target_means_the_first_model() -> None:
    found = read_settings({"model": ["a", "b"], "alias": ["text-embedding-3-small", "x=b"]}, {})
    assert found.aliases == {"text-embedding-3-small": "a", "x": "b"}
