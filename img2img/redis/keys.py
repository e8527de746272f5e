"""All Redis keys and channels of the service. No other module spells a key name.

RQ's own keys begin with `rq:` and are named by RQ, which knows the queue of a model as `RQ_QUEUE`.
`docker/redis/users.acl` grants each process the keys that this table lists for it, and no others.
"""

import re
from typing import Literal, Self

Type = Literal["string", "hash", "list", "set", "sorted set", "stream", "channel"]
Process = Literal["worker", "webhooks"]

PREFIX = "i2i:"
WORKER: Process = "worker"
WEBHOOKS: Process = "webhooks"


class Key(str):
    """A key, or with fields in braces a template of keys: fill it in by `format`.

    Attributes:
        type: Redis type of the value.
        content: Description of the value.
        processes: Processes that use the key beside the API server, which uses all of them.
    """

    type: Type
    content: str
    processes: tuple[Process, ...]

    def __new__(cls, name: str, type: Type, content: str, *processes: Process) -> Self:
        key = super().__new__(cls, PREFIX + name)
        key.type, key.content, key.processes = type, content, processes
        return key

    @property
    def pattern(self) -> str:
        """The glob pattern of the keys that the template describes."""
        return re.sub(r"\{\w+\}", "*", self)


# Jobs
JOB = Key("job:{id}", "hash", "job record, field by field", WORKER, WEBHOOKS)
JOBS = Key("jobs", "sorted set", "ids of all jobs by creation time", WORKER)
JOBS_BY_STATUS = Key("jobs:{status}", "sorted set", "ids of the jobs with this status by creation time", WORKER)
JOBS_OF_OWNER = Key("jobs:of:{owner}", "sorted set", "ids of the jobs of one owner by creation time", WORKER)
JOBS_OF_OWNER_BY_STATUS = Key("jobs:of:{owner}:{status}", "sorted set", "the same, with this status", WORKER)
ENDED_JOBS = Key("jobs:ended", "hash", "number of jobs that ever ended, by `{status} {model}`", WORKER)
SAME_RESULTS = Key(
    "results:{owner}:{digest}",
    "sorted set",
    "ids of an owner's jobs with equal results, by the time of their end",
    WORKER,
)
EXPIRING_JOBS = Key("expiring", "sorted set", "ids of ended jobs by the time at which they are deleted", WORKER)
DEADLINES = Key("deadlines", "sorted set", "ids of unfinished jobs with a deadline, by deadline", WORKER)
GONE_JOB = Key("gone:{id}", "string", "`{reason} {owner}` of a deleted or expired job; expires", WORKER)
JOB_CHANGES = Key("changes", "channel", "`{id} {status}` or `{id}` of every job or batch that has changed", WORKER)
WAITING_JOBS = Key("waiting:{model}", "channel", "published when a job of a model is queued", WORKER)
IDEMPOTENT_REQUEST = Key("idempotency:{owner}:{digest}", "string", "`{fingerprint} {job id}` of a request; expires")
A1111_JOBS = Key("a1111:{owner}", "sorted set", "ids of an owner's unfinished jobs of the A1111 API, by creation time")
A1111_OPTIONS = Key("a1111-options:{owner}", "hash", "options that an owner has set in the A1111 API, as JSON; expires")

# Batches of jobs
BATCH = Key("batch:{id}", "hash", "batch record, field by field", WORKER, WEBHOOKS)
BATCH_JOBS = Key("batch:{id}:jobs", "sorted set", "ids of the jobs of a batch by their index", WORKER, WEBHOOKS)
BATCH_ENDED_JOBS = Key("batch:{id}:ended", "list", "ids of its ended jobs in order", WORKER, WEBHOOKS)
BATCHES = Key("batches", "sorted set", "ids of all batches by creation time", WORKER)
BATCHES_OF_OWNER = Key("batches:of:{owner}", "sorted set", "ids of the batches of one owner by creation time", WORKER)
EXPIRING_BATCHES = Key(
    "batches:expiring", "sorted set", "ids of batches by the time at which they, and their jobs, are deleted", WORKER
)
GONE_BATCH = Key("batches:gone:{id}", "string", "`{reason} {owner}` of a deleted or expired batch; expires", WORKER)

# Append-only file of Redis
ERASURES = Key("erasures", "string", "number of deletions since the file was rewritten", WORKER, WEBHOOKS)
AOF_REWRITE = Key("aof-rewrite", "string", "set for the least time between two rewrites of the file; expires")

# Order of waiting jobs
FAIR_QUEUE_OWNERS = Key("queue:{model}:{level}", "sorted set", "owners with waiting jobs, by virtual time", WORKER)
FAIR_QUEUE_JOBS = Key("queue:{model}:{level}:{owner}", "sorted set", "an owner's jobs by cumulative work", WORKER)
FAIR_QUEUE_IDLE = Key("queue:{model}:idle:{level}", "sorted set", "owners whose last job is not yet paid for", WORKER)
FAIR_QUEUE_TOTALS = Key("queue:{model}:totals", "hash", "numbers, work and virtual times of waiting jobs", WORKER)

# Input images
INPUT_IMAGES = Key(
    "inputs", "sorted set", "blob keys of uploads, by the end of the first one, and unused inputs", WORKER
)
INPUT_IMAGE_USES = Key(
    "inputs:jobs:{key}", "hash", "owner -> number of its jobs that need the input; `#` -> generation", WORKER
)
UPLOAD_OWNERS = Key("inputs:uploads:{key}", "sorted set", "owners of an upload, by time until which it is kept", WORKER)
INPUT_IMAGE_SIZES = Key("inputs:sizes", "hash", "blob key -> bytes", WORKER)
STORED_BYTES = Key("inputs:bytes", "hash", "`all` or `of:{owner}` -> bytes of the images", WORKER)
INPUT_IMAGE_DELETION = Key("inputs:deleted:{key}", "string", "set while the blob is being deleted; expires", WORKER)

# Previews
PREVIEW_REQUEST = Key("preview-requests:{id}", "string", "set while a client wants previews of a job; expires", WORKER)
PREVIEW = Key("preview:{id}", "hash", "`step` and `jpeg` of the latest preview; expires", WORKER)

# Workers
MODEL_CARDS = Key("models", "hash", "model name -> card; kept when its workers stop", WORKER)
MODELS_SEEN = Key("models:seen", "sorted set", "model names by the time when a worker last reported them", WORKER)
MODEL_CHANGES = Key("models:changes", "hash", "model name -> its change by request, as JSON", WORKER)
MODEL_REVISION = Key("models:revision", "string", "number of changes of models by request", WORKER)
WORKERS = Key("workers", "set", "names of registered workers", WORKER)
WORKER_MODELS = Key(
    "workers:{worker}", "string", "names of the models that a worker serves, one a line; expires", WORKER
)
WORKER_MODEL_STATES = Key(
    "workers:{worker}:states", "string", "model name -> state and size in a worker, as JSON; expires", WORKER
)
MODEL_LOAD = Key("workers:loading:{model}", "string", "name of the worker that begins to load a model; expires", WORKER)
STARTING_WORKERS = Key("workers:starting", "set", "names of workers that load models or could not start", WORKER)
WORKER_START = Key(
    "workers:starting:{worker}", "string", "progress or error of the start of a worker, as JSON; expires", WORKER
)
WORKER_REPORT = Key(
    "workers:{worker}:report", "string", "how a worker follows changes of its models, as JSON; expires", WORKER
)
WORKER_THROUGHPUT = Key(
    "workers:{worker}:throughput", "string", "speed of a worker and its work in flight, as JSON; expires", WORKER
)
WRITE_PROBE = Key("probe", "string", "never set: a write of nothing to it shows that Redis accepts writes", WORKER)
REAPER_LOCK = Key("reaper", "string", "lock of the worker that looks for abandoned jobs; expires", WORKER)

# Webhooks
OUTBOX = Key(
    "outbox", "sorted set", "ids of jobs with a pending webhook, by time of the next attempt", WORKER, WEBHOOKS
)
OUTBOX_EVENT = Key("outbox:{id}", "hash", "the job record at its end, `claim` and `tries`", WORKER, WEBHOOKS)
INTERIM_EVENTS = Key(
    "outbox-interim", "sorted set", "ids of running jobs with webhooks before their end, by time", WORKER, WEBHOOKS
)
WEBHOOK_HEARTBEAT = Key("webhooks", "string", "set while a webhook dispatcher is running; expires", WEBHOOKS)

# Durability
CONFIRMED_WRITE = Key("confirmed", "string", "written so that Redis confirms it together with all earlier writes")

# API keys and limits
API_KEYS = Key("keys", "hash", "id of an API key -> its name, scopes, owner and SHA-256, as JSON")
API_KEY_USES = Key("keys:used", "hash", "id of an API key -> time of its last use, to the minute")
AUDIT_LOG = Key("audit", "stream", "administration of keys, data and models: `event`, `actor` and details")
RATE_LIMITS = Key("rate", "string", "prefix of the keys of the `limits` library")

RQ_QUEUE = "img2img-{model}"
