"""Parts by name: what is said of a name that no part has."""

import pytest

from ftlab import registry, tasks


def test_a_name_that_is_not_installed_is_answered_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.KNOWN, "ftlab.tasks", {"rouge": "pip install 'ftlab[rouge]'"})
    said = tasks.unknown("rouge")
    assert said == "data.task=rouge is not installed: pip install 'ftlab[rouge]'. There are: match, sql"


def test_any_other_name_is_answered_with_the_names_like_it() -> None:
    assert tasks.unknown("sqll") == "data.task=sqll is not known. Did you mean: sql? There are: match, sql"
    assert tasks.unknown("translate") == "data.task=translate is not known. There are: match, sql"
