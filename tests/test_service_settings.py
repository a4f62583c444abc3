"""Settings of the service: one declaration each; flags, variables and docs from it."""

import re

import pytest
from support.settings_table import PAGE, page_with_tables

from fedray.cli import main
from fedray.errors import ConfigError
from fedray.service.options import BYTES, DAYS, PATH, SECONDS, options_of
from fedray.service.settings import Settings
from fedray.service.usage import DETAILS

OPTIONS = options_of(Settings)
AMOUNTS = {  # by unit: texts and what they mean
    "": {"8": 8, " 1_000 ": 1000},
    BYTES: {"268435456": 1 << 28, "2GiB": 2 << 30, "500 MB": 500_000_000,
            "1.5g": 3 << 29, "300mib": 300 << 20},
    SECONDS: {"90": 90.0, "1.5 min": 90.0, "2h": 7200.0, "7 days": 604800.0},
    DAYS: {"30": 30.0, "2 weeks": 14.0, "36h": 1.5},
}  # fmt: skip
WRONG = {
    "": ["", "x", "0", "-1", "1.5", "1e3", "8 GiB", "nan", "inf", "9" * 30, "٣"],
    BYTES: ["x", "-1", "1e400", "nan", "2 s", "2 GiBs", "9" * 30, "1,000"],
    SECONDS: ["x", "0", "-1", "nan", "inf", "2 GiB", "1e9", "9" * 30],
    DAYS: ["x", "-1", "nan", "2 GiB", "9" * 30],
    PATH: [" "],
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for option in OPTIONS.values():
        monkeypatch.delenv(option.variable, raising=False)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_setting_says_what_it_is_and_its_default_is_allowed(option):
    assert 5 < len(option.declared.help) <= 80
    assert not option.problem(option.default)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_amounts_are_read_with_their_units(option, monkeypatch):
    for text, value in AMOUNTS.get(option.declared.unit, {}).items():
        if option.kind in (int, float):
            settings = Settings.from_environment({option.name: text})
            assert getattr(settings, option.name) == value
            monkeypatch.setenv(option.variable, text)
            assert getattr(Settings.from_environment(), option.name) == value


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_text_is_named_by_its_flag_or_variable(option, monkeypatch):
    wrong = ["x"] if option.kind is bool else WRONG[option.declared.unit]
    for text in wrong:
        with pytest.raises(ConfigError, match=f"^{option.flag}: got .*needed"):
            Settings.from_environment({option.name: text})
        if text:  # an empty variable is as none
            monkeypatch.setenv(option.variable, text)
            with pytest.raises(ConfigError, match=f"^{option.variable}: got "):
                Settings.from_environment()
            monkeypatch.delenv(option.variable)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_what_has_no_default_can_be_unset_in_words(option):
    if option.declared.unset:
        assert option.default is None
        settings = Settings.from_environment({option.name: "Never"})
        assert getattr(settings, option.name) is None


def test_an_option_goes_before_its_variable(monkeypatch):
    monkeypatch.setenv("FEDRAY_MAX_OPEN", "3")
    assert Settings.from_environment().max_open == 3
    assert Settings.from_environment({"max_open": "4"}).max_open == 4
    assert Settings.from_environment({"max_open": None}).max_open == 3


@pytest.mark.parametrize("wrong", ["MAX_OPNE", "MAXOPEN", "MAX_OPENS"])
def test_a_variable_that_is_nearly_a_settings_is_not_passed_over(wrong, monkeypatch):
    monkeypatch.setenv("FEDRAY_OF_ANOTHER_PROGRAM", "1")
    Settings.from_environment()
    monkeypatch.setenv(f"FEDRAY_{wrong}", "3")
    with pytest.raises(ConfigError, match=f"FEDRAY_{wrong}: .* FEDRAY_MAX_OPEN\\?"):
        Settings.from_environment()


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Settings(max_open=0, max_upload=-1, body_timeout_s=float("nan"), max_calls="9")
    assert len(caught.value.problems) == 4


def test_serve_refuses_a_wrong_limit_with_one_line(capsys, monkeypatch):
    assert main(["serve", "--max-open", "many"]) == 1
    line = "fedray: --max-open: got 'many', needed a whole number of at least 1"
    assert capsys.readouterr().err.startswith(line)
    monkeypatch.setenv("FEDRAY_MAX_UPLOAD", "2 GBs")
    assert main(["serve"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("fedray: FEDRAY_MAX_UPLOAD: got '2 GBs', needed")
    assert message.count("\n") == 1


def test_of_an_unknown_flag_the_nearest_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--max-opn", "3"])
    error = capsys.readouterr().err.strip()
    assert error.endswith("arguments: --max-opn 3; did you mean --max-open?")


def test_serve_has_a_flag_for_every_setting_and_says_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    words = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in OPTIONS.values():
        assert option.flag in words
        if option.kind is not bool:
            assert f"(default {option.default_text})" in words.replace("- ", "-")


def test_the_tables_of_the_docs_are_those_made_from_the_settings():
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_tables(page), "run: make docs"


def test_every_setting_has_an_effect():
    """It is read somewhere, or the limit of a resource that is claimed somewhere."""
    package = PAGE.parent.parent / "fedray"
    files = [file for file in package.rglob("*.py") if file.name != "settings.py"]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    idle = []
    for name in OPTIONS:
        resource = name.removeprefix("max_").removesuffix("_per_client")
        is_claimed = resource in DETAILS and re.search(
            rf"claim[^)]*\b{resource}=", code
        )
        if not is_claimed and not re.search(rf"\b{name}\b", code):
            idle.append(name)
    assert idle == []
