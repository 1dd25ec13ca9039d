"""Two local sites: the reports of a home, and a page to generate text with a model."""

import asyncio
import json
from collections.abc import AsyncIterator

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bardflow.commands.web_guard import guarded
from bardflow.errors import BardError
from bardflow.home import home
from bardflow.model.machine import device
from bardflow.model.sampling import SamplingSpec, opening, sample_watched
from bardflow.model.training import load_model
from bardflow.model.vocabulary import TOKENIZER_FILE, TextStream, decode, encode, load
from bardflow.pages import writing
from bardflow.storage.handles import Model, Report
from bardflow.storage.manifests import StoreError
from bardflow.storage.store import Store
from bardflow.tasks.index import write_index
from bardflow.tasks.reporting import html_of
from bardflow.tasks.run import store

LIKELIEST = 8
MOST_CHARACTERS = 20_000
MOST_BYTES = 1_000_000  # of a request: 100,000 characters of a prompt, each escaped, and the settings


class Wish(BaseModel):
    """A request of the page: the text to continue, and sampling settings."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=100_000)
    characters: int = Field(default=400, ge=1, le=MOST_CHARACTERS)
    temperature: float = Field(default=0.8, ge=0, le=10)
    top_k: int | None = Field(default=200, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int = Field(default=1337, ge=0, lt=2**32)


def reports_app() -> Starlette:
    """Return a site with the index at `/`, generated for each request, and the reports. It serves nothing else."""

    def index(request: Request) -> Response:
        return FileResponse(write_index(), media_type="text/html", headers={"Cache-Control": "no-store"})

    def report(request: Request) -> Response:
        digest = request.path_params["digest"]
        try:
            handle = Store(home()).find(digest)
        except BardError:
            handle = None
        if not isinstance(handle, Report) or handle.digest != digest:
            return PlainTextResponse("there is no such report\n", 404)
        try:
            return FileResponse(html_of(handle), media_type="text/html")
        except StoreError as error:
            return PlainTextResponse(f"{error}\n", 500)

    return Starlette(routes=[Route("/", index), Route("/objects/report/{digest}/report.html", report)])


def writing_app(name: str, model: Model) -> Starlette:
    """Return a site to generate text: `/` is the page, `/write` streams a continuation as JSON lines."""
    folder, place = store().folder(model), device.choose("f32")
    gpt, tokenizer = load_model(folder).to(place.name), load(folder / TOKENIZER_FILE)
    facts = store().facts(model)
    page = writing.render(
        writing.WritingPage(
            name=name,
            model=model.digest,
            parameters=facts["parameters"],
            context=gpt.context,
            prompt=opening(tokenizer),
        )
    )
    # One text at a time, because two texts on the same cores each take twice as long. A request whose client
    # disconnects is cancelled while it waits or between two tokens, and releases the lock.
    lock = asyncio.Lock()

    def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def write(request: Request) -> Response:
        try:
            wish = Wish.model_validate_json(await body_of(request))
            spec = SamplingSpec(temperature=wish.temperature, top_k=wish.top_k, top_p=wish.top_p, seed=wish.seed)
            [ids] = encode(tokenizer, [wish.prompt or opening(tokenizer)])
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
            return JSONResponse({"error": said}, 422)
        except BardError as error:
            return JSONResponse({"error": str(error)}, 422)

        async def lines() -> AsyncIterator[str]:
            stream, written, held = TextStream(tokenizer), 0, None
            async with lock:
                drawing = sample_watched(gpt, ids.tolist(), spec, place, likeliest=LIKELIEST)
                while written < wish.characters:
                    drawn = await run_in_threadpool(next, drawing)
                    held = held or [
                        [decode(tokenizer, [i]), round(share, 5)]
                        for i, share in zip(drawn.likeliest, drawn.shares, strict=True)
                    ]
                    text = stream.take(drawn.token)
                    if written + len(text) + stream.at_least >= wish.characters:
                        text += stream.end()  # an incomplete character also counts
                    if not text:
                        continue
                    text = text[: wish.characters - written]
                    written += len(text)
                    yield json.dumps({"text": text, "likeliest": held}, ensure_ascii=False) + "\n"
                    held = None

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return Starlette(routes=[Route("/", show), Route("/write", write, methods=["POST"])])


async def body_of(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        BardError: it has more than a million bytes.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise BardError(f"the request has more than {MOST_BYTES:,} bytes; give a shorter prompt")
    return body


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve a site, `guarded`, until Ctrl-C."""
    uvicorn.Server(uvicorn.Config(guarded(app, host), host=host, port=port, log_level="warning")).run()
