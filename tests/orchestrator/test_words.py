import pytest

from orchestrator.words import counted, first_line, last_line


def test_lines_of_what_an_error_says():
    assert first_line(ValueError("\n  first \nlast\n")) == "first"
    assert last_line(ValueError("first\n last\n\n")) == "last"
    assert first_line(TimeoutError()) == last_line(TimeoutError()) == "TimeoutError"
    assert first_line("") == last_line(" \n") == ""


@pytest.mark.parametrize(("count", "words"), [(0, "no trial"), (1, "1 trial"), (2, "2 trials")])
def test_a_number_with_its_noun(count, words):
    assert counted(count, "trial") == words
