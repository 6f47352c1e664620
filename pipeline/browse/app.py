"""The pages of `plantmix browse` and their addresses. Every page is plain HTML: links and forms, no script."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from manifests.contract.reader import read_status
from manifests.errors import PlantMixError, RunError
from pipeline.answers.lives import find_lives
from pipeline.browse import galleries
from pipeline.browse.codes import Mask
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.filters import Filters
from pipeline.browse.guard import Guard
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import as_id
from pipeline.browse.model_search import Hits, ModelSearch
from pipeline.browse.pictures import read_picture
from pipeline.browse.snapshot import Snapshot
from pipeline.releases.opening import open_release

TEMPLATES = Path(__file__).parent / "templates"
PAGES = (("/", "Images"), ("/reasons", "Reasons"), ("/duplicates", "Duplicates"),
         ("/leaks", "Leaks"), ("/compare", "Releases"))  # fmt: skip
MAX_STAND_FOR = 200  # images dropped for one, of which its life tells
MAX_TEXT_CHARS = 300
REFRESH_SECONDS = 3  # of the page that waits for the index
NO_MODEL = "no model is here to search with; start browse with --search VECTORS, which `dalip embed` makes"

Describe = Callable[[dict[str, Any]], Sequence[str]]
Handler = Callable[[Request], Response]


class Pages:
    """The handlers. `describe_life` turns a life into the lines that `plantmix explain` prints."""

    def __init__(
        self,
        snapshot: Snapshot,
        as_of: str,
        describe_life: Describe,
        evaluation: EvaluationPictures,
        model_search: ModelSearch | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._evaluation = evaluation
        self._model_search = model_search
        self._describe_life = describe_life
        self._opened: ImageIndex | None = None
        self.share = 0.0  # of the index that is made
        self.seconds_left: float | None = None
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"cut": _cut, "words": lambda name: str(name).replace("_", " ")}
        self._templates.globals |= {
            "name": snapshot.name,
            "as_of": as_of,
            "pages": PAGES,
            "is_release": snapshot.release is not None,
            "radius": snapshot.radius,
            "shown_sets": evaluation.shown,
            "known_sets": evaluation.known,
            "find": self._find,
            "searchable": model_search is not None,
        }
        self._counts = functools.lru_cache(maxsize=64)(self._count)
        self._once = functools.lru_cache(maxsize=16)(lambda question: question(self._image_index))

    def open(self, image_index: ImageIndex) -> None:
        """Answer from this index from now on; until then, every page says how far the index is."""
        self._opened = image_index

    @property
    def num_images(self) -> int:
        """Return how many images can be looked at now."""
        return self._opened.codes.num_images if self._opened else 0

    @property
    def _image_index(self) -> ImageIndex:
        assert self._opened is not None
        return self._opened

    def routes(self) -> list[Route]:
        """Every address."""
        need_index: dict[str, Handler] = {
            "/": self.images,
            "/image/{id}": self.image,
            "/picture/{id}.jpg": self.picture,
            "/twin/{id}.jpg": self.twin,
            "/compare": self.compare,
            **{f"/{name}": functools.partial(self.gallery, name) for name in galleries.GALLERIES},
        }
        return [
            *(Route(path, self._when_open(handler)) for path, handler in need_index.items()),
            Route("/style.css", functools.partial(_file, "style.css", "text/css")),
            Route("/icon.svg", functools.partial(_file, "icon.svg", "image/svg+xml")),
        ]

    def _when_open(self, handler: Handler) -> Handler:
        return lambda request: handler(request) if self._opened else self.waiting()

    def waiting(self) -> Response:
        """Return how far the index is. It asks again by itself."""
        page = self._page("waiting.html", "", share=self.share, seconds_left=self.seconds_left)
        page.headers["Refresh"] = str(REFRESH_SECONDS)
        return page

    def images(self, request: Request) -> Response:
        """Return the grid, with the filters and their counts."""
        filters = Filters.read(request.query_params, self._image_index.facets)
        if filters.ranked:
            return self._nearest(filters)
        images, more = self._image_index.page(filters)
        total, facets = self._counts(filters.link())
        backwards = bool(filters.before)
        first, last = (images[0]["id"], images[-1]["id"]) if images else ("", "")
        return self._page(
            "images.html",
            "/",
            filters=filters,
            images=images,
            total=total,
            facets=facets,
            earlier=filters.link(before=first) if (more if backwards else filters.after) and images else None,
            later=filters.link(after=last) if (more or backwards) and images else None,
            building=self._building(),
            message="",
        )

    def _nearest(self, filters: Filters) -> Response:
        """Show the images that a trained model finds most like the words or the image."""
        status, message, num_here, among = 200, "", 0, None
        images: list[dict[str, Any]] = []
        try:
            hits = self._ask_model(filters)
            images, num_here, among = self._image_index.nearest(filters, hits)
            if not num_here:
                message = (
                    f"None of the {len(hits):,} nearest pictures of {self._vectors} is in this folder. They are "
                    "vectors of another release: run `dalip embed` on one of this folder"
                )
        except RunError as error:
            status, message = 503, str(error)
        total, facets = (0, []) if message else self._facets(filters, among)
        return self._page(
            "images.html", "/", status=status, filters=filters, images=images, total=total, facets=facets,
            earlier=None, later=None, building=self._building(), message=message, known=num_here,
        )  # fmt: skip

    @property
    def _vectors(self) -> str:
        return self._model_search.vectors if self._model_search else ""

    def _ask_model(self, filters: Filters) -> Hits:
        """Raise RunError when there is no search, no such picture, or the search fails."""
        if self._model_search is None:
            raise RunError(NO_MODEL)
        if filters.shows:
            return self._model_search.by_words(filters.shows)
        located = self._image_index.locate(filters.like)
        content = read_picture(self._snapshot, located) if located else None
        if content is None:
            raise RunError("no picture of that image is stored, so nothing can be compared with it")
        return self._model_search.by_picture(content)

    def image(self, request: Request) -> Response:
        """One image: its life, its duplicates, its near misses, its twin in an evaluation set."""
        sample_id = request.path_params["id"]
        rows = self._image_index.images([sample_id]) if as_id(sample_id) else []
        if not rows:
            return self._page("wrong.html", "/", status=404, message="There is no such image here.")
        image = rows[0]
        life = self._life(sample_id)
        return self._page(
            "image.html",
            "/",
            image=image,
            place=self._image_index.locate(sample_id),
            life=life,
            lines=self._lines(life, image),
            leaks=self._leaks_of(sample_id),
            duplicates=[] if image["phash"] is None else self._image_index.duplicates(image),
            near_misses=self._image_index.near_misses(image),
            neighbours=self._image_index.neighbours(sample_id),
        )

    def picture(self, request: Request) -> Response:
        """Return the stored JPEG of an image."""
        located = self._image_index.locate(request.path_params["id"])
        return _jpeg(read_picture(self._snapshot, located) if located else None)

    def twin(self, request: Request) -> Response:
        """Return the picture of an evaluation set that an image leaks, where the user has named the set's place."""
        return _jpeg(self._evaluation.read(request.path_params["id"], request.query_params.get("set", "")))

    def gallery(self, name: str, request: Request) -> Response:
        """One of the galleries, as its template shows it."""
        return self._page(f"{name}.html", f"/{name}", **self._once(galleries.GALLERIES[name]))

    def compare(self, request: Request) -> Response:
        """Images that one of two releases lacks; only names from the folder's own list are taken."""
        folders = self._release_folders()
        a, b = (request.query_params.get(name, "") for name in ("a", "b"))
        moved, command = {}, ""
        if a in folders and b in folders:
            before, after = (open_release(str(folders[name])) for name in (a, b))
            moved = {name: self._image_index.images(ids) for name, ids in galleries.changes(before, after).items()}
            command = f"plantmix diff {folders[a]} {folders[b]}"
        return self._page("compare.html", "/compare", names=self._told(folders), a=a, b=b, moved=moved, command=command)

    def _told(self, names: Iterable[str]) -> dict[str, str]:
        """Each release with when it was sealed and how many samples it has, the newest first."""
        ordered = "SELECT name, num_samples, sealed_at FROM releases ORDER BY sealed_at DESC"
        rows = [] if self._snapshot.release else self._image_index.rows(ordered)
        told = {row["name"]: f"{row['sealed_at']:%Y-%m-%d %H:%M}, {row['num_samples']:,} samples" for row in rows}
        return {name: told.get(name, "not in the catalogue") for name in sorted(names, key=[*told, *names].index)}

    def failed(self, request: Request, error: Exception) -> Response:
        """Return a page for what went wrong in the tables: a part that is gone, a release that is damaged."""
        return self._page("wrong.html", "", status=503, message=str(error).splitlines()[0])

    def not_found(self, request: Request, error: Exception) -> Response:
        """Return a page for an address that does not exist."""
        return self._page("wrong.html", "", status=404, message="There is no such page here.")

    def _page(self, template: str, current: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(current=current, **values), status)

    def _find(self, **chosen: str) -> str:
        """Address of the grid with one value chosen of each facet that is named."""
        return Filters(chosen={name: (value,) for name, value in chosen.items()}).link()

    def _count(self, link: str) -> tuple[int, list[dict[str, Any]]]:
        query = Request({"type": "http", "query_string": link.partition("?")[2].encode(), "headers": []}).query_params
        return self._facets(Filters.read(query, self._image_index.facets))

    def _facets(self, filters: Filters, among: Mask | None = None) -> tuple[int, list[dict[str, Any]]]:
        total, facets = self._image_index.counts(filters, among)
        for facet in facets:
            for row in facet["values"]:
                row["link"] = filters.toggled(facet["name"], row["value"])
        return total, facets

    def _building(self) -> bool:
        """Return whether a build works in this folder now."""
        if self._snapshot.release:
            return False
        try:
            return bool(read_status(str(self._snapshot.folder)).get("running"))
        except (PlantMixError, ValueError):
            return False

    def _life(self, sample_id: str) -> dict[str, Any]:
        with self._snapshot.connection.cursor() as sql:
            if not self._snapshot.release:
                life = find_lives(sql, sample_id)[0]
                return life | {"stands_for": life["stands_for"][:MAX_STAND_FOR]}
            row = sql.sql("SELECT * FROM samples WHERE sample_id = $1 AND copy = 0", params=[sample_id])
            return {"sample": row.to_arrow_table().to_pylist()[0]}

    def _lines(self, life: dict[str, Any], image: dict[str, Any]) -> Sequence[str]:
        if "sample" not in life:
            return self._describe_life(life)
        return [f"{name:<22}{value}" for name, value in life["sample"].items() if value not in (None, "")]

    def _leaks_of(self, sample_id: str) -> list[dict[str, Any]]:
        if self._snapshot.release:
            return []
        return self._image_index.rows(
            f"SELECT l.*, e.url, {galleries.TWIN} FROM leaks l LEFT JOIN evaluation e "
            "ON e.evaluation_set = l.evaluation_set AND e.member = l.evaluation_member WHERE l.sample_id = ? LIMIT 20",
            [sample_id],
        )

    def _release_folders(self) -> dict[str, Path]:
        """Return the sealed releases that lie beside each other here, by name."""
        if self._snapshot.release:
            parent = self._snapshot.folder.absolute().parent
        else:
            parent = self._snapshot.folder / "releases"
        return {path.parent.name: path.parent for path in sorted(parent.glob("*/release.json"))}


def make_app(pages: Pages, *, token: str, port: int) -> ASGIApp:
    """Return the whole application, guarded."""
    app = Starlette(
        routes=pages.routes(),
        exception_handlers={404: pages.not_found, PlantMixError: pages.failed, duckdb.Error: pages.failed},
    )
    return Guard(app, token, port)


def _cut(text: object, num_chars: int = MAX_TEXT_CHARS) -> str:
    """Return a value as text, cut with an ellipsis."""
    shown = "" if text is None else str(text)
    return shown if len(shown) <= num_chars else shown[: num_chars - 1] + "…"


def _file(name: str, kind: str, request: Request) -> Response:
    return Response((TEMPLATES / name).read_text(encoding="utf-8"), media_type=kind)


def _jpeg(content: bytes | None) -> Response:
    if content is None:
        return Response("no picture is stored\n", 404, media_type="text/plain")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})
