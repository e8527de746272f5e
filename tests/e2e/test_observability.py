"""Metrics, logs and traces of the whole service.

All tests of this module share one service with API keys that has run a successful job with a webhook, a failed job and
a cancelled job.
"""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobStatus
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import redis_server
from tests.support.serving import serving
from tests.support.specs import make_spec
from tests.support.trace_collectors import Collector, collecting
from tests.support.webhook_receivers import receiving

FOLDER = Path(__file__).parents[2] / "docker" / "observability"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "img2img.json"
RULES = FOLDER / "rules" / "img2img.yml"
PROMPT, NEGATIVE, TOKEN = "a zebrafinch marked as secret", "no wolpertinger", "hook-token-9481"
# Metrics without samples on a machine without a GPU.
GPU_ONLY = {"img2img_gpu_memory_bytes"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
TERMINAL = {"succeeded", "failed", "cancelled"}
# The service has four processes, and the machine may be busy.
SLOW_S = 120

# The first test includes the time of the fixture.
pytestmark = pytest.mark.timeout(600)


@dataclass
class Observed:
    """Outputs of the service.

    Attributes:
        api_metrics: metrics of the API server in the text format.
        worker_metrics: metrics of the worker in the text format.
        ports: metrics ports of the API server and the worker.
        done: the representation of the successful job.
        failed: ID of the failed job.
        cancelled: ID of the cancelled job.
    """

    url: str
    secret: str
    metrics_secret: str
    api_metrics: str
    worker_metrics: str
    ports: tuple[int, int]
    done: dict[str, Any]
    failed: str
    cancelled: str
    log: Path
    collector: Collector


@pytest.fixture(scope="module")
def observed(model_folder: Path) -> Iterator[Observed]:
    """The outputs of a running service after a successful, a failed and a cancelled job."""
    with TemporaryDirectory(prefix="i2i-") as folder, collecting() as collector, receiving() as receiver:
        data_dir, log = Path(folder), Path(folder) / "log"
        with redis_server(data_dir) as redis_url, Redis.from_url(redis_url) as redis:
            secret, _ = ApiKeys(redis).create("test", [Scope.READ, Scope.SUBMIT])
            metrics_secret, _ = ApiKeys(redis).create("prometheus", [Scope.METRICS])
            ports = free_port(), free_port()
            environment = {
                "IMG2IMG_REDIS_URL": redis_url,
                "IMG2IMG_KEYS": "required",
                "IMG2IMG_LOG_FORMAT": "json",
                "IMG2IMG_LOG_LEVEL": "DEBUG",
                "IMG2IMG_API_METRICS_PORT": str(ports[0]),
                "IMG2IMG_METRICS_PORT": str(ports[1]),
                "IMG2IMG_WEBHOOK_ALLOW_PRIVATE": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            }
            with serving(data_dir, model_folder, log=log, **environment) as client:
                client.headers["Authorization"] = f"Bearer {secret}"
                webhook = json.dumps({"url": f"{receiver.url}?token={TOKEN}"})
                done = _submit(client, webhook=webhook, num_inference_steps=4, num_images=2, guidance_scale=3)
                failed = _submit_broken_image(redis, ObjectStore((data_dir / "store").as_uri()))
                cancelled = _submit_and_cancel(client)
                client.get("/jobs/%0aforged?prompt=" + PROMPT)
                client.get("/img2img/../nothing", params={"key": secret})
                for job_id in (done, cancelled):
                    wait_for(lambda job_id=job_id: client.get(f"/jobs/{job_id}").json()["status"] in TERMINAL, SLOW_S)
                receiver.wait(1, SLOW_S)
                wait_for(lambda: JobQueue(redis).job_store.get(failed).status is JobStatus.FAILED)  # type: ignore[union-attr]
                wait_for(lambda: 'img2img_cancel_latency_seconds_count{model="tiny"} 1.0' in _scrape(ports[1]), SLOW_S)
                wait_for(lambda: {"webhook", "run"} <= {s.name for s in collector.spans if s.trace_id == TRACE}, SLOW_S)
                yield Observed(
                    str(client.base_url),
                    secret,
                    metrics_secret,
                    _scrape(ports[0]),
                    _scrape(ports[1]),
                    ports,
                    client.get(f"/jobs/{done}").json(),
                    failed,
                    cancelled,
                    log,
                    collector,
                )


def _scrape(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).raise_for_status().text


def _submit(client: httpx.Client, blue: int = 0, **fields: Any) -> str:
    response = client.post(
        "/img2img",
        files={"image": encoded(gradient(64, 64, blue))},
        data={"prompt": PROMPT, "negative_prompt": NEGATIVE, **fields},
        headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def _submit_broken_image(redis: Redis, store: ObjectStore) -> str:
    """Submit a job with an invalid input image, which the API server would refuse, and return its ID."""
    broken = PROMPT.encode()
    digest = sha256(broken).hexdigest()
    store.put(input_key(digest), broken)
    return JobQueue(redis).submit(make_spec(model="tiny", image=digest, prompt=PROMPT)).id


def _submit_and_cancel(client: httpx.Client) -> str:
    # Another image, because jobs share the encoding of one.
    job_id = _submit(client, blue=9, num_inference_steps=150, num_images=8, strength=1)
    wait_for(lambda: client.get(f"/jobs/{job_id}").json()["progress"]["step"], SLOW_S)
    assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    return job_id


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(text: str, name: str, **labels: str) -> float:
    return sum(v for having, v in samples(text).get(name, []) if labels.items() <= having.items())


def expressions() -> dict[str, str]:
    """Return the PromQL expressions of the dashboard and the rules by panel, variable or alert."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    for variable in dashboard["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        found[variable["name"]] = f"count by ({label}) ({metric})"
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        found[rule["alert"]] = rule["expr"]
    return {where: expr.replace("$__rate_interval", "5m").replace("$model", ".*") for where, expr in found.items()}


def metrics_of(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:img2img|process)_\w+", re.sub(r'"[^"]*"', "", expr)))


def test_dashboard_and_rules_use_exported_metrics(observed: Observed) -> None:
    exported = samples(observed.api_metrics + observed.worker_metrics)
    used = {name for expr in expressions().values() for name in metrics_of(expr)}
    assert len(used) > 20
    assert {name for name in used if not exported.get(name)} == GPU_ONLY
    assert set(exported) >= GPU_ONLY


@pytest.mark.parametrize("where", expressions())
def test_dashboard_and_rules_use_exported_labels(observed: Observed, where: str) -> None:
    exported = samples(observed.api_metrics + observed.worker_metrics)
    expr = expressions()[where]
    names = metrics_of(expr) - GPU_ONLY
    known = {"job", "instance", "device", "kind"}.union(*(labels for name in names for labels, _ in exported[name]))
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expr) for label in labels.split(",")}
    selected = {label for labels in re.findall(r"\{([^}]*)\}", expr) for label in re.findall(r"(\w+)[=!]", labels)}
    assert grouped | selected <= known


def test_exported_metrics_are_documented(observed: Observed) -> None:
    document = (FOLDER.parents[1] / "docs" / "observability.md").read_text()
    exported = samples(observed.api_metrics + observed.worker_metrics)
    metrics = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exported if name.startswith("img2img_")}
    # The name of the family of a counter has no suffix.
    metrics -= {name for name in metrics if f"{name}_total" in metrics}
    documented = {name for name in metrics if f"`{name}`" in document or f"`{name}_total`" in document}
    assert metrics == documented


def test_metrics_count_the_jobs(observed: Observed) -> None:
    api, worker = observed.api_metrics, observed.worker_metrics
    assert value(api, "img2img_jobs_ended_total", model="tiny", status="succeeded") == 1
    assert value(api, "img2img_jobs_ended_total", model="tiny", status="failed") == 1
    assert value(api, "img2img_jobs_ended_total", model="tiny", status="cancelled") == 1
    assert value(api, "img2img_redis_up") == value(api, "img2img_workers", model="tiny") == 1
    assert value(api, "img2img_queue_jobs") == 0
    assert value(api, "img2img_http_requests_total", method="POST", route="/img2img", status="202") == 2
    assert value(api, "img2img_http_requests_total", route="/jobs/{job_id}/cancel", status="200") == 1
    assert value(worker, "img2img_queue_wait_seconds_count", model="tiny", priority="normal") == 3
    assert value(worker, "img2img_job_duration_seconds_count", model="tiny") == 1
    assert value(worker, "img2img_images_total", model="tiny") == 2
    for stage in ("load", "wait", "encode", "denoise", "decode", "save"):
        assert value(worker, "img2img_stage_duration_seconds_count", model="tiny", stage=stage) >= 1, stage
    rows = value(worker, "img2img_engine_rows_total", stage="denoise", kind="useful")
    assert rows == value(worker, "img2img_engine_batch_rows_sum", stage="denoise")
    # Two images with guidance, three steps.
    assert rows >= 2 * 2 * 3
    assert value(worker, "img2img_engine_rows_total", kind="padded") == 0
    steps = value(worker, "img2img_denoising_steps_total", model="tiny")
    assert 2 * 3 < steps <= 2 * 3 + 8 * 150
    assert value(worker, "img2img_engine_slots") == 16


def test_labels_are_bounded(observed: Observed) -> None:
    for text in (observed.api_metrics, observed.worker_metrics):
        assert observed.done["id"] not in text
        assert "forged" not in text
        assert "%0a" not in text
    routes = {labels["route"] for labels, _ in samples(observed.api_metrics)["img2img_http_requests_total"]}
    assert routes <= {"none", "/img2img", "/jobs/{job_id}", "/jobs/{job_id}/cancel", "/readyz"}


def test_metrics_require_the_metrics_scope(observed: Observed) -> None:
    with httpx.Client(base_url=observed.url, timeout=10) as anonymous:
        assert_problem(anonymous.get("/metrics"), 401, "missing_api_key")
        assert_problem(anonymous.get("/metrics", headers={"X-API-Key": observed.secret}), 403, "insufficient_scope")
        headers = {"X-API-Key": observed.metrics_secret}
        response = anonymous.get("/metrics", headers=headers)
        assert "img2img_http_requests_total" in samples(response.text)
        assert_problem(anonymous.get("/jobs", headers=headers), 403, "insufficient_scope")


def log_records(observed: Observed) -> list[dict[str, Any]]:
    """Return the JSON log records. `serve` itself and Redis log plain text."""
    return [json.loads(line) for line in observed.log.read_text().splitlines() if line.startswith("{")]


def test_logs_contain_no_prompt_and_no_key(observed: Observed) -> None:
    text = observed.log.read_text()
    assert len(log_records(observed)) > 10
    for secret in (PROMPT, "zebrafinch", NEGATIVE, "wolpertinger", observed.secret, observed.metrics_secret, TOKEN):
        assert secret not in text
        assert secret.encode() not in observed.collector.raw
    assert base64.b64encode(encoded(gradient(64, 64))).decode()[:64] not in text


def test_log_records_of_a_job_have_its_id(observed: Observed) -> None:
    for job_id in (observed.done["id"], observed.cancelled, observed.failed):
        records = [record for record in log_records(observed) if job_id in json.dumps(record)]
        assert records
        assert all(record["job_id"] == job_id for record in records)
    services = {record["service"] for record in log_records(observed) if record.get("job_id") == observed.done["id"]}
    assert services == {"api", "worker", "webhooks"}
    (failed,) = [
        record for record in log_records(observed) if record.get("job_id") == observed.failed and "exception" in record
    ]
    assert "UnidentifiedImageError" in failed["exception"]
    assert {"time", "level", "logger", "message", "service"} <= failed.keys()
    requests = [record for record in log_records(observed) if record["logger"] == "img2img.app.telemetry.access_log"]
    assert {record["service"] for record in log_records(observed) if record.get("trace_id") == TRACE} == {
        "api",
        "worker",
        "webhooks",
    }
    assert any(record["message"].startswith("POST /img2img 202 in ") for record in requests)


def test_spans_of_a_job_are_one_trace(observed: Observed) -> None:
    job_id = observed.done["id"]
    spans = [span for span in observed.collector.spans if span.trace_id == TRACE]
    (run,) = [span for span in spans if span.attributes.get("img2img.job_id") == job_id and span.name == "run"]
    (wait,) = [span for span in spans if span.attributes.get("img2img.job_id") == job_id and span.name == "queue_wait"]
    submit = next(span for span in spans if span.span_id == run.parent_id)
    assert submit.name == "POST /img2img"
    assert wait.parent_id == submit.span_id
    parts = {span.name: span for span in spans if span.parent_id == run.span_id}
    assert set(parts) >= {"load", "wait", "encode_prompt", "encode", "denoise", "decode", "save"}
    order = ("load", "wait", "encode", "denoise", "decode", "save")
    assert [name for name, _ in sorted(parts.items(), key=lambda part: part[1].started_ns) if name in order] == list(
        order
    )
    assert all(run.started_ns <= part.started_ns <= part.ended_ns <= run.ended_ns for part in parts.values())
    assert {span.service for span in spans} == {"img2img-api", "img2img-worker", "img2img-webhooks"}
    assert run.attributes["img2img.end"] == "succeeded"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_config_rules_and_panels(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "config", FOLDER / "prometheus.yml"], check=True)
    rules = [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(expressions().values())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", tmp_path / "panels.yml"], check=True)


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_has_data_for_every_panel(observed: Observed, tmp_path: Path) -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(RULES)]
    for job, port in zip(config["scrape_configs"], observed.ports, strict=True):
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=error"])
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as prometheus:

            def query(expr: str) -> list[Any]:
                response = prometheus.get("/api/v1/query", params={"query": expr}).json()
                assert response["status"] == "success", response
                return list(response["data"]["result"])

            def has_scraped() -> bool:
                try:
                    return len(query("count_over_time(up[1m]) >= 3")) == 2 and len(query("up == 1")) == 2
                except (httpx.TransportError, ValueError):
                    # Prometheus responds with plain text until it has read its files.
                    return False

            wait_for(has_scraped, 60)
            alerts = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
            empty = {where for where, expr in expressions().items() if where not in alerts and not query(expr)}
            assert empty == {"GPU memory A"}
    finally:
        process.kill()
        process.wait()
