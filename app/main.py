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

from app import cors, errors, openapi
from app.adapters import a1111, openai
from app.contract.keys import ApiKeys
from app.contract.models import ModelRegistry
from app.contract.previews import Previews
from app.contract.queue import JobQueue
from app.contract.room import Caps
from app.contract.store import ObjectStore
from app.contract.traces import Traces
from app.deadlines import keep_deadlines
from app.decoding.limits import Limits
from app.decoding.pool import Decoders
from app.door import Door
from app.feed import Feed
from app.forecast import Forecaster
from app.middleware import BodyLimit, BodyTime
from app.observability import metrics, tracing
from app.observability.middleware import Observer
from app.observability.queue_state import QueueState
from app.rate import RateLimit
from app.routes import control_maps, follow, health, images, img2img, jobs, models, results
from app.settings import ApiSettings

STORE_PATIENCE_S = 3.0  # a client waits meanwhile


def create_app(settings: ApiSettings) -> FastAPI:
    """The front end as an ASGI application. Raises CannotTrace."""
    http_metrics = metrics.HttpMetrics()
    traces = Traces.from_environment("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = connect(settings.resolved_redis_url)
        app.state.settings = settings
        app.state.redis = redis
        app.state.queue = JobQueue(redis, Caps(settings.max_queued, settings.max_queued_per_key))
        app.state.keys = ApiKeys(redis)
        app.state.rate = RateLimit(settings.rate_limit, redis)
        app.state.models = ModelRegistry(redis)
        app.state.store = ObjectStore(settings.resolved_store_url, patience_s=STORE_PATIENCE_S)
        app.state.decoders = Decoders(Limits(settings.max_pixels, settings.max_body_bytes))
        app.state.decoders.start()
        app.state.forecaster = Forecaster(app.state.queue.records.line, app.state.models)
        app.state.previews = Previews(redis)
        app.state.feed = Feed(settings.resolved_redis_url)
        app.state.traces = traces
        state = QueueState(redis, app.state.queue, app.state.models)
        http_metrics.registry.register(state)
        tasks = [asyncio.create_task(app.state.feed.run()), asyncio.create_task(keep_deadlines(app.state.queue))]
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
        version=version("img2img"),
        summary="Turns a picture into another picture: submit, poll, fetch the PNG.",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)  # the last one added is the first to see a
    app.add_middleware(Door, required=settings.keys_required)  # request: a browser's question whether it may ask at
    cors.install(app, settings.allowed_origins)  # all comes without a key
    app.add_middleware(BodyTime, timeout_s=settings.body_timeout)
    app.add_middleware(Observer, metrics=http_metrics)
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
