"""The page's server: a few small routes over Starlette, which MLflow brings along.

It answers this machine alone unless told otherwise: a foreign Host header is refused (a page elsewhere could otherwise
point its name at 127.0.0.1), requests carry JSON or bytes of a kind that browsers send across sites only after asking,
and the page's policy lets it load nothing from anywhere else. Texts reach the page as JSON and are set as text.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.base.border import explain, one_line
from pipeline.data.images import ImageFault, decode_image
from pipeline.evaluation.results import EvaluationError
from pipeline.explore.answers import Box, Explored, Hits

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ASSETS = {"page.css": "text/css", "page.js": "text/javascript"}
MAX_BODY_BYTES = 40 << 20
MAX_UPLOADS = 16  # images in memory
MAX_MEGAPIXELS = 100.0
SHOWN_SIDE, THUMB_SIDE = 960, 240  # pixels
Text = Annotated[str, Field(min_length=1, max_length=2000)]


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _ImageName(_Question):
    """An image of the data (of one of the models' rows), or one that was sent before."""

    model: int = 0
    row: int | None = None
    upload: str | None = None


class _TextSearch(_Question):
    text: Text
    kind: Literal["short", "long", "region"] = "short"
    count: int = Field(12, ge=1, le=100)


class _ImageSearch(_Question):
    image: _ImageName
    box: tuple[float, float, float, float] | None = None
    count: int = Field(12, ge=1, le=100)


class _Heat(_Question):
    image: _ImageName
    phrase: Text


class _Score(_Question):
    image: _ImageName
    box: tuple[float, float, float, float] | None = None
    phrases: list[Text] = Field(min_length=1, max_length=100)


class Explorer:
    """The routes over one model or two."""

    def __init__(self, models: Sequence[Explored]) -> None:
        self.models = list(models)
        self._uploads: OrderedDict[str, Image.Image] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def facts(self, _: _Question) -> dict[str, Any]:
        """What the page shows before the first question."""
        return {
            "models": [{"name": one.name, "images": len(one.data.vectors) if one.data else 0} for one in self.models]
        }

    def search_text(self, asked: _TextSearch) -> dict[str, Any]:
        return self._hits([one.search_text(asked.text, asked.kind, asked.count) for one in self.models])

    def search_image(self, asked: _ImageSearch) -> dict[str, Any]:
        image, box = self.image(asked.image), _checked(asked.box)
        return self._hits([one.search_image(image, box, asked.count) for one in self.models])

    def heat(self, asked: _Heat) -> dict[str, Any]:
        image = self.image(asked.image)
        answers = []
        for one in self.models:
            picture, low, high = one.heat(image, asked.phrase)
            data = base64.b64encode(_jpeg(picture, SHOWN_SIDE)).decode("ascii")
            answers.append({"name": one.name, "image": f"data:image/jpeg;base64,{data}", "low": low, "high": high})
        return {"models": answers}

    def score(self, asked: _Score) -> dict[str, Any]:
        image, box = self.image(asked.image), _checked(asked.box)
        phrases = list(dict.fromkeys(asked.phrases))
        return {
            "models": [
                {"name": one.name, "phrases": [asdict(row) for row in one.score(image, box, phrases)]}
                for one in self.models
            ]
        }

    def upload(self, data: bytes) -> dict[str, Any]:
        """Keep an image for further questions; the oldest goes."""
        image = decode_image(data, MAX_MEGAPIXELS)
        with self._lock:
            self._count += 1
            name = str(self._count)
            self._uploads[name] = image
            while len(self._uploads) > MAX_UPLOADS:
                self._uploads.popitem(last=False)
        return {"upload": name, "width": image.width, "height": image.height}

    def image(self, name: _ImageName) -> Image.Image:
        """The pixels of an image that the page names.

        Raises:
            EvaluationError, ImageFault, OSError: it is not there, or cannot be read.
        """
        if name.upload is not None:
            with self._lock:
                if name.upload not in self._uploads:
                    raise EvaluationError("that image was dropped from memory; send it again")
                return self._uploads[name.upload]
        data = self.models[name.model].data if 0 <= name.model < len(self.models) else None
        if data is None or name.row is None or not 0 <= name.row < len(data):
            raise EvaluationError("there is no such image; search again")
        return decode_image(data.item(name.row).read(), MAX_MEGAPIXELS)

    def _hits(self, hits: Sequence[Hits]) -> dict[str, Any]:
        answers = []
        for number, (one, some) in enumerate(zip(self.models, hits, strict=True)):
            rows = []
            for hit in some.found:
                key, text = ("", None) if one.data is None else (one.data.item(hit.row).key, one.data.text(hit.row))
                rows.append({"model": number, "row": hit.row, "score": hit.score, "key": key, "text": text})
            answers.append(
                {
                    "name": one.name,
                    "results": rows,
                    "encode_milliseconds": some.encode_milliseconds,
                    "search_milliseconds": some.search_milliseconds,
                }
            )
        return {"models": answers}


def make_app(explorer: Explorer, hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")) -> Starlette:
    """The application; ``hosts``: names under which it may be asked."""
    questions: list[tuple[str, type[_Question], Callable[[Any], dict[str, Any]]]] = [
        ("/facts", _Question, explorer.facts),
        ("/search/text", _TextSearch, explorer.search_text),
        ("/search/image", _ImageSearch, explorer.search_image),
        ("/heat", _Heat, explorer.heat),
        ("/score", _Score, explorer.score),
    ]

    async def upload(request: Request) -> Response:
        if request.headers.get("content-type") != "application/octet-stream":
            return _refused("send the image's bytes as application/octet-stream", 415)
        body = await _body(request)
        return _refused("the file is too large", 413) if body is None else await _answered(explorer.upload, body)

    async def image(request: Request) -> Response:
        side = THUMB_SIDE if "small" in request.query_params else SHOWN_SIDE
        numbers = {name: value for name, value in request.path_params.items() if value is not None}
        try:
            data = await run_in_threadpool(lambda: _jpeg(explorer.image(_ImageName(**numbers)), side))
        except (EvaluationError, ImageFault, OSError) as error:
            return _refused(one_line(error), 404)
        return _headed(Response(data, media_type="image/jpeg"))

    routes = [Route(path, _route(kind, call), methods=["POST"]) for path, kind, call in questions]
    routes += [
        Route("/", _asset("page.html", "text/html")),
        *(Route(f"/{name}", _asset(name, kind)) for name, kind in ASSETS.items()),
        Route("/upload", upload, methods=["POST"]),
        Route("/image/{model:int}/{row:int}", image),
        Route("/sent/{upload}", image),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[guard])


def _route(kind: type[_Question], call: Callable[[Any], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _refused("send JSON", 415)
        body = await _body(request)
        if body is None:
            return _refused("the question is too large", 413)
        try:
            asked = kind.model_validate_json(body)
        except ValidationError as error:
            return _refused(explain(error), 400)
        return await _answered(call, asked)

    return answer


async def _answered(call: Callable[[Any], dict[str, Any]], asked: Any) -> Response:
    try:
        return _headed(JSONResponse(await run_in_threadpool(call, asked)))
    except (EvaluationError, ImageFault, OSError, ValueError) as error:
        return _refused(one_line(error), 400)


async def _body(request: Request) -> bytes | None:
    """None where it is longer than :data:`MAX_BODY_BYTES`; no more than that is read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _asset(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    text = resources.files("pipeline.explore").joinpath(name).read_text(encoding="utf-8")

    async def serve(_: Request) -> Response:
        return _headed(Response(text, media_type=kind))

    return serve


def _refused(reason: str, status: int) -> Response:
    return _headed(JSONResponse({"error": reason}, status_code=status))


def _headed(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def _jpeg(image: Image.Image, side: int) -> bytes:
    shown = image.convert("RGB")
    if max(shown.size) > side:
        shown.thumbnail((side, side))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _checked(box: Box | None) -> Box | None:
    if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise EvaluationError(f"the box is {box}; 0 <= x1 < x2 <= 1 must hold, and so for y: draw it again")
    return box
