"""`/docs`: Swagger UI, set up so that the forms of "Try it out" can be sent as they are."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse

ASSETS = "/static-offline-docs"
SCRIPT = "/docs/try-it-out.js"
SCRIPT_FILE = Path(__file__).with_name("try-it-out.js")
# Of `get_swagger_ui_html`: the call that builds the page.
CONSTRUCTOR = "SwaggerUIBundle({"


def install_docs_page(app: FastAPI) -> None:
    """Add `/docs` and its script. The other assets are those of FastAPIOffline."""

    @app.get("/docs", include_in_schema=False)
    async def docs_page(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )
        script = f'<script src="{root}{SCRIPT}"></script>'
        html = bytes(page.body).decode()
        html = html.replace("<script>", f"{script}\n<script>", 1)
        return HTMLResponse(html.replace(CONSTRUCTOR, f"{CONSTRUCTOR}\n    plugins: [TryItOut],", 1))

    @app.get(SCRIPT, include_in_schema=False)
    async def docs_script() -> FileResponse:
        return FileResponse(SCRIPT_FILE, media_type="text/javascript")
