"""Lines that commands print of data: one line each, whatever a stranger wrote into it."""

from __future__ import annotations

import pytest

from pipeline.answers.tables import print_lines
from pipeline.commands.explain import describe_life


def test_explain_cannot_be_forged_by_a_rejected_row(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://a.example/x\nselect    kept\x1b[2J"
    life = {
        "reject": {
            "row_number": 1, "source": "web", "url": url, "record_key": None, "reason": "invalid_url", "value": "a\rb",
        }
    }  # fmt: skip
    print_lines(describe_life(life))
    assert capsys.readouterr().out.splitlines() == [
        "source    row 2 of web: http://a.example/x\\u000aselect    kept\\u001b[2J",
        "ingest    DROPPED: invalid_url (a\\u000db)",
    ]
