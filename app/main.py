"""create_app: the one place where the front end is put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from img2img.blobs import ObjectStore
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from img2img.redis.queue_limits import QueueLimits
from img2img.telemetry.tracing import Tracer

from .compat import a1111, openai
from .http import cors
from .http import problem_details as errors
from .http.authentication import AuthenticationMiddleware
from .http.body_limits import BodySizeLimitMiddleware, BodyTimeoutMiddleware
from .http.rate_limit import RateLimiter
from .imaging.sandbox_limits import SandboxLimits
from .imaging.sandbox_pool import DecoderPool
from .openapi import document as openapi
from .progress.deadlines import cancel_overdue_jobs
from .progress.eta import EtaEstimator
from .routes import control_maps, health, images, img2img, jobs, models, results
from .routes import events as follow
from .settings import ApiSettings
from .telemetry import metrics, tracing
from .telemetry.access_log import AccessLogMiddleware
from .telemetry.queue_collector import QueueCollector

STORE_PATIENCE_S = 3.0  # a client waits meanwhile


def create_app(settings: ApiSettings) -> FastAPI:
    """The front end as an ASGI application. Raises CannotTrace."""
    http_metrics = metrics.HttpMetrics()
    traces = Tracer.from_environment("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = connect(settings.resolved_redis_url)
        app.state.settings = settings
        app.state.redis = redis
        app.state.queue = JobQueue(redis, QueueLimits(settings.max_queued, settings.max_queued_per_key))
        app.state.keys = ApiKeys(redis)
        app.state.rate = RateLimiter(settings.rate_limit, redis)
        app.state.models = ModelRegistry(redis)
        app.state.store = ObjectStore(settings.resolved_store_url, patience_s=STORE_PATIENCE_S)
        app.state.decoders = DecoderPool(SandboxLimits(settings.max_pixels, settings.max_body_bytes))
        app.state.decoders.start()
        app.state.forecaster = EtaEstimator(app.state.queue.job_store.fair_queue, app.state.models)
        app.state.previews = Previews(redis)
        app.state.feed = JobChangeListener(settings.resolved_redis_url)
        app.state.traces = traces
        state = QueueCollector(redis, app.state.queue, app.state.models)
        http_metrics.registry.register(state)
        tasks = [asyncio.create_task(app.state.feed.run()), asyncio.create_task(cancel_overdue_jobs(app.state.queue))]
        with http_metrics.served(settings.metrics_host, settings.api_metrics_port):
            yield
        for task in tasks:
            task.cancel()
        http_metrics.registry.unregister(state)
        traces.close()
        app.state.decoders.close()
        redis.close()

    app = FastAPIOffline(  # /docs without a content delivery network: the service may stand behind a firewall
        title="img2img",
        version=version("img2img-server"),
        summary="Turns a picture into another picture: submit, poll, fetch the PNG.",
        lifespan=lifespan,
    )
    app.add_middleware(
        BodySizeLimitMiddleware, max_body_bytes=settings.max_body_bytes
    )  # the last one added is the first to see a
    app.add_middleware(
        AuthenticationMiddleware, required=settings.keys_required
    )  # request: a browser's question whether it may ask at
    cors.install(app, settings.allowed_origins)  # all comes without a key
    app.add_middleware(BodyTimeoutMiddleware, timeout_s=settings.body_timeout)
    app.add_middleware(AccessLogMiddleware, metrics=http_metrics)
    for routes in (img2img, control_maps, images, jobs, follow, results, models, health, openai, a1111):
        app.include_router(routes.router)
    metrics.install(app, http_metrics)
    tracing.install(app, traces)
    errors.install(app)
    openapi.install(app, keys_required=settings.keys_required)
    return app


def connect(url: str) -> Redis:
    """A client that fails soon and never sends twice: a retried submit could queue a job twice."""
    return Redis.from_url(url, socket_timeout=1.5, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
