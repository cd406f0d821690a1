"""Words of messages."""

import pytest

from engine.runtime.wording import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (39.5, "40 s"), (99, "99 s"), (100, "2 min"), (2100, "35 min"), (6000, "1.7 h"), (90000, "25.0 h")],
)
def test_time_spans_are_rounded(seconds, text):
    assert duration(seconds) == text
