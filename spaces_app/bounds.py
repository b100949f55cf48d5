"""What a stranger may send: to which routes, how large and how often. Gradio itself takes bodies of any size, and has routes that the
page does not use and that write to memory and disk. `app.py` puts the `Gate` in front of it.
"""

import re
import time
from collections import Counter

import gradio as gr
from PIL import Image
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import PlainTextResponse

MAX_BODY = 2**15  # bytes of a request that is no upload
MAX_UPLOAD = 5 * 2**20  # bytes of a picture
MAX_UPLOADS = 200  # pictures that are kept at once; each is removed after UPLOAD_SECONDS
UPLOAD_SECONDS = 900
MAX_POSTS = 600  # of one visitor in a minute; a control that moves sends several a second
UPLOAD = "/gradio_api/upload"
ROUTES = re.compile(rf"{UPLOAD}|/gradio_api/(cancel|reset|queue/join|run/predict|call/(v2/)?(?P<endpoint>\w+))/?")
UNUSED = ("/gradio_api/deep_link",)  # it writes a file for each call

Image.MAX_IMAGE_PIXELS = 2**23  # PIL warns above it, and refuses twice as many


def quote(value) -> str:
    """A value as an error shows it: 100 characters at most."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


class Gate:
    """ASGI middleware: 404 for what the page does not use, 413 for what is too large, 429 for who asks too often."""

    def __init__(self, app, page: gr.Blocks):
        self.page, self.app = page, RequestBodyLimitMiddleware(app, MAX_BODY)
        self.upload = RequestBodyLimitMiddleware(app, MAX_UPLOAD + MAX_BODY)  # with the form around it
        self.endpoints = {fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"}
        self.posts: Counter[str] = Counter()  # of each visitor in this minute
        self.minute = 0.0

    async def __call__(self, scope, receive, send):
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        is_upload = scope.get("path") == UPLOAD
        app = PlainTextResponse(refusal[1], refusal[0]) if refusal else self.upload if is_upload else self.app
        await app(scope, receive, send)

    def refusal(self, scope) -> tuple[int, str] | None:
        """Status and text for a request that is not let in."""
        path = scope["path"]
        if scope["method"] != "POST":
            return (404, "Not found.") if path in UNUSED else None
        route = ROUTES.fullmatch(path)
        if route is None or (route["endpoint"] and route["endpoint"] not in self.endpoints):
            return 404, "There is no such endpoint."
        if (minute := time.monotonic() // 60) != self.minute:
            self.posts.clear()
            self.minute = minute
        visitor, _ = scope["client"]
        self.posts[visitor] += 1
        if self.posts[visitor] > MAX_POSTS:
            return 429, f"More than {MAX_POSTS} requests in a minute: please wait."
        if path == UPLOAD and len(self.page.upload_file_set) >= MAX_UPLOADS:
            return 503, f"{MAX_UPLOADS} pictures are kept already: please try again in a few minutes."
        return None
