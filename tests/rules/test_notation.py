"""Rule lines: what they say is read whole, or refused."""

from __future__ import annotations

import pytest

from nestify.rules.notation import parse


@pytest.mark.parametrize(
    "line",
    ["n (g i *s -> n", "n g) i -> n", "n, * -> n", "n i, o", "n -> m -> n", "((g i) h) -> g"],
)
def test_a_line_that_is_not_whole_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="rule line"):
        parse(line)


def test_letters_products_and_stars_are_read() -> None:
    assert parse("*n (g i), o -> *n o") == ([[("*n",), ("g", "i")], [("o",)]], [("*n",), ("o",)])
