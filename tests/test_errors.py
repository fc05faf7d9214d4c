"""The error tree, its exit codes and what it says."""

from __future__ import annotations

import re

import pytest

from rest_deploy import errors
from rest_deploy.errors import (
    InputError,
    InvariantError,
    MissingDependencyError,
    OutputError,
    RestDeployError,
    VerificationError,
    require,
)

NOT_OURS = {0, 2, 130}
"""Success, click's own code for a wrong command line, and Ctrl-C: no class stands for them."""

MEANING = {
    VerificationError: "the check ran and failed",
    InputError: "bad input",
    MissingDependencyError: "something is missing on this machine",
    OutputError: "the result could not be written",
    InvariantError: "an internal invariant broke",
}


def tree(root: type[RestDeployError] = RestDeployError) -> list[type[RestDeployError]]:
    """`root` and everything below it that rest_deploy.errors defines."""
    below = [error for child in root.__subclasses__() for error in tree(child)]
    return [root, *(error for error in below if error.__module__ == errors.__name__)]


def documented(text: str) -> dict[int, str]:
    """Exit codes and meanings of the table in a docstring."""
    return {
        int(code): meaning
        for code, meaning in re.findall(r"^(\d+)\s{2,}(\S.*)$", text, re.MULTILINE)
    }


def test_table_equals_the_classes() -> None:
    table = documented(errors.__doc__ or "")
    assert len(table) == 8
    assert {error.exit_code for error in tree()} == set(table) - NOT_OURS


@pytest.mark.parametrize(("error", "meaning"), MEANING.items(), ids=lambda value: str(value)[-24:])
def test_table_means_the_class(error: type[RestDeployError], meaning: str) -> None:
    assert documented(errors.__doc__ or "")[error.exit_code].startswith(meaning)


def test_table_parser_sees_a_changed_code() -> None:
    changed = (errors.__doc__ or "").replace("\n5     the result", "\n7     the result")
    assert set(documented(changed)) - NOT_OURS != {error.exit_code for error in tree()}


def test_every_class_says_what_it_is_for() -> None:
    assert [error.__name__ for error in tree() if not error.__doc__] == []


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_below_an_error_the_exit_code_stays(error: type[RestDeployError]) -> None:
    """A caller that catches `InputError` may rely on code 3 for everything it catches."""
    if error not in (RestDeployError, *MEANING):
        parents = [parent for parent in MEANING if issubclass(error, parent)]
        assert [parent.exit_code for parent in parents] == [error.exit_code]


def test_text_carries_the_hint() -> None:
    error = OutputError("cannot write", hint="free space")
    assert (error.message, error.hint) == ("cannot write", "free space")
    assert str(error) == "cannot write (free space)"


def test_text_without_hint_has_no_brackets() -> None:
    assert str(InputError("no such image: x.jpg")) == "no such image: x.jpg"


def test_require_accepts_what_is_installed() -> None:
    require("msgspec", "export")


def test_require_names_package_and_extra() -> None:
    with pytest.raises(MissingDependencyError, match="'no_such_package'") as caught:
        require("no_such_package", "export")
    assert caught.value.hint == "pip install 'rest-deploy[export]'"
    assert caught.value.exit_code == 4


def test_require_of_a_submodule_whose_parent_is_missing() -> None:
    with pytest.raises(MissingDependencyError):
        require("no_such_parent.bindings", "export")
