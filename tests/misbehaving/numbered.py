"""A web of numbered pictures for whole builds, which counts what it was asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer


class NumberedPictures(MisbehavingServer):
    """Serves `/p/NUMBER`; what is special to a test says its `answer`."""

    def __init__(self, **more: Any) -> None:
        act = lambda sock, request: self.answer(sock, int(request.path.rpartition("/")[2]))  # noqa: E731
        super().__init__(extra={"p": act}, **more)

    def answer(self, sock: Any, number: int) -> None:
        send_picture(sock, encode(pixels(seed=number), quality=90))

    def url_of(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/p/{number}"

    def urls(self, num: int) -> list[str]:
        """The addresses of the first pictures."""
        return [self.url_of(number) for number in range(num)]

    def newly_asked(self) -> Counter[int]:
        """How often each picture was asked since the last look."""
        found = Counter(int(each.path.rpartition("/")[2]) for each in self.log if each.path.startswith("/p/"))
        self.log.clear()
        return found
