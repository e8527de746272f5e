"""create_app: builds the API server from its parts."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse
from fastapi_offline import FastAPIOffline
from redis import Redis

from img2img.blobs import ObjectStore, UnusableStore
from img2img.container_limits import cpu_count, memory_bytes
from img2img.free_disk import FreeDisk
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import MAX_WAITING, MAX_WAITING_PER_OWNER, DecoderPool
from img2img.moderation import moderator_for
from img2img.presigned_uploads import UploadSigner
from img2img.redis.api_keys import ApiKeys
from img2img.redis.durability import TIMEOUT_S, Durability, DurableWrites
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from img2img.redis.queue_limits import QueueLimits
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.redis.worker_starts import WorkerStarts
from img2img.telemetry.tracing import Tracer

from .backends.default_model import DefaultModel
from .backends.moderation import MAX_OPEN, RequestModeration
from .backends.readiness import ReadinessChecks
from .backends.redis_client import RESPONSE_S, connect_redis
from .backends.store_threads import StoreThreads
from .compat import a1111
from .compat.hugging_face import routes as hugging_face
from .compat.openai import routes as openai
from .compat.replicate import routes as replicate
from .dependencies import Cells, Services
from .http.authentication import AuthenticationMiddleware
from .http.body_limits import BodySizeLimitMiddleware, BodyTimeoutMiddleware
from .http.browser_requests import BrowserRequestMiddleware
from .http.connection_limit import connection_limit
from .http.content_encoding import ContentEncodingMiddleware
from .http.cors import install_cors
from .http.in_flight import OWNER_SHARE, ByteBudget, InFlightMiddleware
from .http.open_requests import OpenRequests
from .http.problem_details import install_error_handlers
from .http.rate_limit import RateLimiter
from .http.request_id import RequestIdMiddleware
from .openapi.docs_page import install_docs_page
from .openapi.document import install_openapi
from .openapi.error_reference import install_error_page
from .playground.routes import playground_router
from .progress.aof_rewrites import rewrite_append_only_file
from .progress.deadlines import cancel_overdue_jobs
from .progress.eta import EtaEstimator
from .progress.job_reads import JobReads
from .routes import (
    batches,
    control_maps,
    events,
    health,
    images,
    img2img,
    jobs,
    masks,
    model_changes,
    models,
    results,
    uploads,
)
from .settings import ApiSettings
from .telemetry.access_log import AccessLogMiddleware
from .telemetry.metrics import HttpMetrics, install_metrics
from .telemetry.queue_collector import CellCollector, QueueCollector
from .telemetry.tracing import install_tracing

EVENT_STREAMS = (EventSourceResponse, events.EventStreamResponse)
# A client waits for the response while a request to the store is repeated, or is not answered.
STORE_RETRY_S, STORE_RESPONSE_S = 2.0, 3.0
MAX_INFLIGHT_BYTES = 512 * 1024 * 1024

ROUTERS = tuple(
    module.router
    for module in (
        img2img,
        control_maps,
        masks,
        images,
        uploads,
        jobs,
        events,
        results,
        batches,
        models,
        model_changes,
        health,
        openai,
        hugging_face,
        replicate,
        a1111,
    )
)


def create_app(settings: ApiSettings) -> FastAPI:
    """Return the API server as an ASGI application. Raises TracingError."""
    metrics = HttpMetrics()
    tracer = Tracer.from_environment("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.cells = cells = Cells(build_cells(settings, tracer))
        async with run_services(cells, metrics):
            # For `ServerProtocol`.
            max_connections = connection_limit(settings.max_connections)

            def begin_shutdown() -> None:
                for one in cells.all:
                    one.job_changes.close()

            yield {"max_connections": max_connections, "begin_shutdown": begin_shutdown}

    # FastAPIOffline serves the assets of /docs itself: the service may have no access to a content delivery network.
    app = FastAPIOffline(
        title="img2img",
        version=version("img2img-server"),
        summary="Diffusion image-to-image as asynchronous jobs: submit an image, follow the job, download the result.",
        lifespan=lifespan,
        docs_url=None,
    )
    install_docs_page(app)
    install_error_page(app)
    install_middleware(app, settings, metrics)
    routers = (*ROUTERS, playground_router()) if settings.playground else ROUTERS
    for router in routers:
        app.include_router(router)
    install_metrics(app, metrics)
    for router in (app.router, *routers):
        add_head_routes(app, router)
    install_tracing(app, tracer)
    install_error_handlers(app)
    install_openapi(app, keys_required=settings.keys_required)
    return app


def add_head_routes(app: FastAPI, router: APIRouter) -> None:
    """Answer HEAD where there is GET (RFC 9110, section 9.1), except for streams. The server leaves out the body."""
    for route in list(router.routes):
        if not isinstance(route, APIRoute) or route.response_class in EVENT_STREAMS:
            continue
        if "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


def install_middleware(app: FastAPI, settings: ApiSettings, metrics: HttpMetrics) -> None:
    """Add the middleware. The last one added is the outermost, which sees a request first."""
    app.add_middleware(InFlightMiddleware, budget=byte_budget(settings))
    app.add_middleware(BodySizeLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(ContentEncodingMiddleware)
    app.add_middleware(
        AuthenticationMiddleware, required=settings.keys_required, anonymous_admin=settings.is_only_for_this_machine
    )
    if not settings.keys_required:
        app.add_middleware(
            BrowserRequestMiddleware,
            allowed_hosts=settings.accepted_hosts,
            allowed_origins=settings.allowed_origins,
        )
    # Outside of authentication: a browser sends preflight requests without an API key.
    install_cors(app, settings.allowed_origins)
    app.add_middleware(BodyTimeoutMiddleware, timeout_s=settings.body_timeout)
    app.add_middleware(AccessLogMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)


def byte_budget(settings: ApiSettings) -> ByteBudget:
    """Return the bytes that requests can hold. Without API keys, all requests have one owner."""
    limit = settings.max_inflight_bytes or min(MAX_INFLIGHT_BYTES, memory_bytes() // 4)
    return ByteBudget(limit, int(limit * OWNER_SHARE) if settings.keys_required else limit)


def durable_writes(settings: ApiSettings, redis: Redis) -> DurableWrites:
    """Return the writes that clients get acknowledged. They have their own connections, because they may wait."""
    if settings.durability is not Durability.EVERYSEC:
        redis = connect_redis(settings.resolved_redis_url, TIMEOUT_S + RESPONSE_S)
    return DurableWrites(redis, settings.durability, TIMEOUT_S)


def build_cells(settings: ApiSettings, tracer: Tracer) -> list[Services]:
    """Return the services of each cell; of one without a name if there are no cells."""
    cells: list[Services] = []
    for name, settings_of_cell in settings.by_cell().items():
        one = build_services(settings_of_cell, tracer, name)
        if cells:
            # Cells share the parts that use neither Redis nor the store.
            first = cells[0]
            one = replace(one, parsers=first.parsers, decoders=first.decoders, moderation=first.moderation)
        cells.append(one)
    return cells


def build_services(settings: ApiSettings, tracer: Tracer, cell: str = "") -> Services:
    """Return the services of the API server for one cell. None of them connects before it is used."""
    redis = connect_redis(settings.resolved_redis_url)
    queue = JobQueue(redis, _limits(settings), durable_writes(settings, redis), cell)
    models, api_keys = ModelRegistry(redis), ApiKeys(redis)
    store = ObjectStore(settings.resolved_store_url, retry_timeout_s=STORE_RETRY_S, response_timeout_s=STORE_RESPONSE_S)
    default_model = DefaultModel(settings, lambda name: models.find(name) is not None)
    free_disk = FreeDisk(settings.resolved_store_url, settings.min_free_disk)
    eta, previews = EtaEstimator(queue.job_store.fair_queue, models), Previews(redis)
    job_changes = JobChangeListener(settings.resolved_redis_url)
    return Services(
        cell=cell,
        settings=settings,
        default_model=default_model,
        redis=redis,
        queue=queue,
        api_keys=api_keys,
        open_requests=OpenRequests(api_keys),
        rate_limiter=RateLimiter(settings.rate_limit, redis) if settings.rate_limit else None,
        models=models,
        store=store,
        store_threads=StoreThreads(),
        free_disk=free_disk,
        readiness=ReadinessChecks(
            redis,
            models,
            WorkerStarts(redis),
            WebhookOutbox(redis) if settings.webhook_secrets else None,
            store,
            free_disk,
            default_model=lambda: default_model.name,
            with_errors=not settings.keys_required,
        ),
        parsers=CapacityLimiter(cpu_count()),
        decoders=DecoderPool(
            SandboxLimits(settings.max_pixels, settings.max_body_bytes),
            # Without API keys, all clients are one owner.
            max_waiting_per_owner=MAX_WAITING_PER_OWNER if settings.keys_required else MAX_WAITING,
        ),
        eta=eta,
        previews=previews,
        job_reads=JobReads(queue.job_store, eta, previews, job_changes),
        job_changes=job_changes,
        tracer=tracer,
        moderation=_moderation(settings),
        upload_signer=_upload_signer(store),
    )


def _upload_signer(store: ObjectStore) -> UploadSigner | None:
    try:
        return UploadSigner(store)
    except UnusableStore:
        return None


def _moderation(settings: ApiSettings) -> RequestModeration | None:
    moderator = moderator_for(settings, "prompt", "input")
    # Without API keys, all clients are one owner.
    share = MAX_OPEN // 2 if settings.keys_required else MAX_OPEN
    return RequestModeration(moderator, settings.moderated, share=share) if moderator else None


def _limits(settings: ApiSettings) -> QueueLimits:
    return QueueLimits(
        max_queued=settings.max_queued,
        max_queued_per_owner=settings.resolved_max_queued_per_key,
        max_stored_bytes=settings.max_stored_bytes,
        max_stored_bytes_per_owner=settings.stored_bytes_per_owner,
    )


@asynccontextmanager
async def run_services(cells: Cells, metrics: HttpMetrics) -> AsyncIterator[None]:
    """Run the decoders, the background tasks and the metrics port until the context ends, then close everything."""
    shared = cells.all[0]
    collector = CellCollector({one.cell: QueueCollector(one.redis, one.queue, one.models) for one in cells.all})
    metrics.registry.register(collector)
    shared.decoders.start()
    tasks = [asyncio.create_task(coroutine) for one in cells.all for coroutine in background(one)]
    with metrics.served(shared.settings.metrics_host, shared.settings.api_metrics_port):
        yield
    for task in tasks:
        task.cancel()
    metrics.registry.unregister(collector)
    shared.tracer.close()
    shared.decoders.close()
    for one in cells.all:
        one.store_threads.close()
        one.redis.close()


def background(services: Services) -> list[Coroutine[Any, Any, None]]:
    """Return what runs in the background for a cell."""
    coroutines = [
        services.job_changes.run(),
        cancel_overdue_jobs(services.queue),
        rewrite_append_only_file(services.redis, services.settings.aof_rewrite_interval),
    ]
    if services.settings.keys_required:
        coroutines.append(services.open_requests.run())
    return coroutines
