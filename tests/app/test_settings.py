from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import SettingsError, load


@pytest.fixture
def configured(tmp_path):
    (tmp_path / "jobwatt.toml").write_text('[lake]\npath = "from-toml"\n')
    return tmp_path


def test_the_flag_wins_over_the_environment_which_wins_over_the_file_which_wins_over_the_default(configured, tmp_path):
    environment = {"JOBWATT_LAKE": "from-environment"}
    assert load(lake=Path("flag"), folder=configured, environment=environment).lake == Path("flag")
    assert load(folder=configured, environment=environment).lake == Path("from-environment")
    assert load(folder=configured, environment={}).lake == configured / "from-toml"
    assert load(folder=tmp_path / "elsewhere", environment={}).lake == tmp_path / "elsewhere" / "data/lake"


def test_the_settings_say_who_named_the_lake(configured):
    assert load(lake=Path("x"), folder=configured, environment={}).lake_from == "--lake"
    assert load(folder=configured, environment={}).lake_from == "jobwatt.toml"


def test_an_empty_variable_counts_as_not_set(configured):
    assert load(folder=configured, environment={"JOBWATT_LAKE": ""}).lake == configured / "from-toml"


def test_an_absolute_path_and_a_home_folder_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for written, meant in {"/big/lake": "/big/lake", "~/lake": "/home/someone/lake"}.items():
        (tmp_path / "jobwatt.toml").write_text(f'[lake]\npath = "{written}"\n')
        assert load(folder=tmp_path, environment={}).lake == Path(meant)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[lake]\npth = "x"\n', r"\[lake\] has 'pth', which jobwatt does not know; it knows path"),
        ('[laek]\npath = "x"\n', r"'laek', which jobwatt does not know; it knows the section \[lake\]"),
        ('lake = "x"\n', r"lake is 'x'; write a section \[lake\]"),
        ("[lake]\npath = 3\n", r"\[lake\] path is 3; write a folder"),
        ('[lake]\npath = ""\n', r"\[lake\] path is ''"),
        ("[lake\n", "is not TOML"),
        ("\udcff", "is not TOML"),
    ],
)
def test_what_jobwatt_does_not_understand_in_its_file_is_named(content, says, tmp_path):
    (tmp_path / "jobwatt.toml").write_text(content, errors="surrogateescape")
    with pytest.raises(SettingsError, match=says):
        load(folder=tmp_path, environment={})


def test_a_broken_file_is_named_even_where_a_flag_overrules_it(tmp_path):
    (tmp_path / "jobwatt.toml").write_text("nonsense")
    with pytest.raises(SettingsError):
        load(lake=Path("x"), folder=tmp_path, environment={})
