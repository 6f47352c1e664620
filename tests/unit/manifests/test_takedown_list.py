"""The takedown list of a work folder: what was added is read back, whatever its texts hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.catalog_file import TAKEDOWNS_FILE
from manifests.errors import ConfigError
from manifests.takedowns import Entry, add_entries, read_list

LINE_BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"]


@pytest.mark.parametrize("line_break", LINE_BREAKS, ids=ascii)
def test_a_reason_with_any_line_break_stops_no_later_build(tmp_path: Path, line_break: str) -> None:
    """As it was found: the takedown succeeded, then every build and takedown on the folder failed."""
    entry = Entry("owner", f"A.{line_break}Photographer", f"asked by mail{line_break}on Monday")
    add_entries(str(tmp_path), [entry])
    assert read_list(str(tmp_path)) == [entry]
    other = Entry("id", "0" * 32)
    add_entries(str(tmp_path), [entry, other])
    assert read_list(str(tmp_path)) == sorted([entry, other])


@given(value=st.text(min_size=1), reason=st.text(min_size=1))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, value: str, reason: str) -> None:
    folder = str(tmp_path_factory.mktemp("work"))
    add_entries(folder, [Entry("owner", value, reason)])
    assert read_list(folder) == [Entry("owner", value, reason)]


def test_a_list_written_by_hand_on_windows_is_read(tmp_path: Path) -> None:
    lines = [{"by": "owner", "value": "A"}, {"by": "url", "value": "http://u:pw@a.example/1?token=x"}]
    (tmp_path / TAKEDOWNS_FILE).write_bytes("\r\n".join(map(json.dumps, lines)).encode() + b"\r\n\r\n")
    assert read_list(str(tmp_path)) == [Entry("owner", "A"), Entry("url", "http://a.example/1?token=***")]


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / TAKEDOWNS_FILE).write_text('{"by": "owner", "value": "A"}\n{"by": "url", "value": 7}\n')
    with pytest.raises(ConfigError, match="line 2: not an entry"):
        read_list(str(tmp_path))
