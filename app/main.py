"""create_app: builds the API server from its parts."""

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
from img2img.domain.model_card import model_name
from img2img.free_disk import FreeDisk
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from img2img.redis.queue_limits import QueueLimits
from img2img.telemetry.tracing import Tracer

from .compat import a1111, openai
from .dependencies import Services
from .http.authentication import AuthenticationMiddleware
from .http.body_limits import BodySizeLimitMiddleware, BodyTimeoutMiddleware
from .http.cors import install_cors
from .http.problem_details import install_error_handlers
from .http.rate_limit import RateLimiter
from .imaging.sandbox_limits import SandboxLimits
from .imaging.sandbox_pool import MAX_WAITING, MAX_WAITING_PER_OWNER, DecoderPool
from .openapi.document import install_openapi
from .progress.deadlines import cancel_overdue_jobs
from .progress.eta import EtaEstimator
from .routes import control_maps, events, health, images, img2img, jobs, models, results
from .settings import ApiSettings
from .telemetry.access_log import AccessLogMiddleware
from .telemetry.metrics import HttpMetrics, install_metrics
from .telemetry.queue_collector import QueueCollector
from .telemetry.tracing import install_tracing

# A client waits for the response while the store is retried.
STORE_PATIENCE_S = 3.0

ROUTERS = tuple(
    module.router for module in (img2img, control_maps, images, jobs, events, results, models, health, openai, a1111)
)


def create_app(settings: ApiSettings) -> FastAPI:
    """Return the API server as an ASGI application. Raises TracingError."""
    metrics = HttpMetrics()
    tracer = Tracer.from_environment("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = build_services(settings, tracer)
        async with run_services(services, metrics):
            yield

    # FastAPIOffline serves the assets of /docs itself: the service may have no access to a content delivery network.
    app = FastAPIOffline(
        title="img2img",
        version=version("img2img-server"),
        summary="Diffusion image-to-image as asynchronous jobs: submit an image, follow the job, download the result.",
        lifespan=lifespan,
    )
    install_middleware(app, settings, metrics)
    for router in ROUTERS:
        app.include_router(router)
    install_metrics(app, metrics)
    install_tracing(app, tracer)
    install_error_handlers(app)
    install_openapi(app, keys_required=settings.keys_required)
    return app


def install_middleware(app: FastAPI, settings: ApiSettings, metrics: HttpMetrics) -> None:
    """Add the middleware. The last one added is the outermost, which sees a request first."""
    app.add_middleware(BodySizeLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(AuthenticationMiddleware, required=settings.keys_required)
    # Outside of authentication: a browser sends preflight requests without an API key.
    install_cors(app, settings.allowed_origins)
    app.add_middleware(BodyTimeoutMiddleware, timeout_s=settings.body_timeout)
    app.add_middleware(AccessLogMiddleware, metrics=metrics)


def build_services(settings: ApiSettings, tracer: Tracer) -> Services:
    """Return the services of the API server. None of them connects before it is used."""
    redis = connect_redis(settings.resolved_redis_url)
    queue = JobQueue(redis, _limits(settings))
    models = ModelRegistry(redis)
    return Services(
        settings=settings,
        default_model=model_name(settings.model),
        redis=redis,
        queue=queue,
        api_keys=ApiKeys(redis),
        rate_limiter=RateLimiter(settings.rate_limit, redis) if settings.rate_limit else None,
        models=models,
        store=ObjectStore(settings.resolved_store_url, retry_timeout_s=STORE_PATIENCE_S),
        free_disk=FreeDisk(settings.resolved_store_url, settings.min_free_disk),
        decoders=DecoderPool(
            SandboxLimits(settings.max_pixels, settings.max_body_bytes),
            # Without API keys, all clients are one owner.
            max_waiting_per_owner=MAX_WAITING_PER_OWNER if settings.keys_required else MAX_WAITING,
        ),
        eta=EtaEstimator(queue.job_store.fair_queue, models),
        previews=Previews(redis),
        job_changes=JobChangeListener(settings.resolved_redis_url),
        tracer=tracer,
    )


def _limits(settings: ApiSettings) -> QueueLimits:
    return QueueLimits(
        max_queued=settings.max_queued,
        max_queued_per_owner=settings.resolved_max_queued_per_key,
        max_stored_bytes=settings.max_stored_bytes,
        max_stored_bytes_per_owner=settings.stored_bytes_per_owner,
    )


@asynccontextmanager
async def run_services(services: Services, metrics: HttpMetrics) -> AsyncIterator[None]:
    """Run the decoders, the background tasks and the metrics port until the context ends, then close everything."""
    collector = QueueCollector(services.redis, services.queue, services.models)
    metrics.registry.register(collector)
    services.decoders.start()
    background = (services.job_changes.run(), cancel_overdue_jobs(services.queue))
    tasks = [asyncio.create_task(coroutine) for coroutine in background]
    with metrics.served(services.settings.metrics_host, services.settings.api_metrics_port):
        yield
    for task in tasks:
        task.cancel()
    metrics.registry.unregister(collector)
    services.tracer.close()
    services.decoders.close()
    services.redis.close()


def connect_redis(url: str) -> Redis:
    """Return a Redis client with short timeouts and no retries: a repeated submit could queue a job twice."""
    return Redis.from_url(url, socket_timeout=1.5, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
