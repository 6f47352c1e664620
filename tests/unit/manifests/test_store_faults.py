"""How often a store is asked, and what is said when it does not answer."""

from __future__ import annotations

import pytest

from manifests.errors import AwayError, RunError
from manifests.stores import faults, folder

ADDRESS = "s3://bucket/file"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "WAITS_SECONDS", (0.0, 0.0))


class Away:
    """A question that is refused `times` times."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.times, self.num_asked = times, 0
        self.error = error or PermissionError("The provided token has expired.")

    def __call__(self) -> str:
        self.num_asked += 1
        if self.num_asked <= self.times:
            raise self.error
        return "answer"


def test_a_store_is_asked_again_and_a_disk_is_not() -> None:
    assert faults.ask(ADDRESS, question := Away(2)) == "answer"
    assert question.num_asked == 3
    with pytest.raises(PermissionError):
        faults.ask("/disk/file", question := Away(1))
    assert question.num_asked == 1


def test_what_is_patient_within_is_not_asked_again_without() -> None:
    question = Away(100)
    with pytest.raises(RunError, match=r"cannot be used now \(s3://bucket/file cannot be read now \(PermissionError"):
        folder.patiently(ADDRESS, lambda: faults.ask(ADDRESS, question))
    assert question.num_asked == 3


def test_a_file_that_is_gone_or_a_full_disk_is_said_at_once() -> None:
    for error in (FileNotFoundError("gone"), OSError(28, "No space left on device")):
        with pytest.raises(OSError, match=r"gone|space"):
            faults.ask(ADDRESS, question := Away(1, error))
        assert question.num_asked == 1


def test_an_error_that_is_its_own_cause_has_an_end() -> None:
    error = ConnectionResetError("reset")
    error.__cause__ = error
    assert faults.status_of(error) is None
    with pytest.raises(AwayError, match="reset"):
        faults.ask(ADDRESS, Away(3, error))
