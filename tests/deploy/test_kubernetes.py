"""The Kubernetes manifests built by kustomize: valid, consistent with each other, and consistent with the code."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import is_redis_ready
from img2img.app.supervisor.redis_server import find_redis_server
from img2img.worker.settings import WorkerSettings
from tests.support.processes import wait_for

MANIFESTS = Path(__file__).parents[2] / "docker" / "kubernetes"
# Minor versions of Kubernetes. A manifest that is valid in both is valid in those between.
OLDEST, NEWEST = "1.30", "1.36"
SECRETS = {
    "REDIS_PASSWORD": "0" * 64,
    "IMG2IMG_WEBHOOK_SECRET": "whsec_" + "A" * 44,
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "key",
}
Manifest = dict[str, Any]


def kustomize(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if not shutil.which(command[0]):
        pytest.skip("needs kubectl or kustomize")
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["demo", "gpu"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The manifests of an overlay with test secrets."""
    folder = tmp_path_factory.mktemp("kubernetes") / "all"
    shutil.copytree(MANIFESTS, folder)
    overlay = folder / "overlays" / request.param
    example = (overlay / "secrets.env.example").read_text()
    names = [line.split("=")[0] for line in example.splitlines() if "=" in line and not line.startswith("#")]
    assert sorted(names) == sorted(SECRETS)
    (overlay / "secrets.env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    build = kustomize(overlay)
    assert build.returncode == 0, build.stderr
    return list(yaml.safe_load_all(build.stdout))


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in manifests if found["kind"] in kinds}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return of_kind(manifests, "Deployment", "StatefulSet")


def container(workload: Manifest) -> Manifest:
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return only  # type: ignore[no-any-return]


def pods(manifests: list[Manifest], selector: Manifest) -> set[str]:
    """Return the names of the workloads with pods that match a selector."""
    structured = selector.keys() & {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {}) if structured else selector
    chosen = set()
    for name, workload in workloads(manifests).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if not wanted.items() <= labels.items():
            continue
        if all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])):
            chosen.add(name)
    return chosen


def test_manifests_are_valid(manifests: list[Manifest]) -> None:
    assert {"api", "worker", "webhooks", "redis"} == workloads(manifests).keys()
    for manifest in manifests:
        # A resource of KEDA, for which Kubernetes has no schema.
        if manifest["kind"] == "ScaledObject":
            continue
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_detects_an_unknown_field(manifests: list[Manifest]) -> None:
    api = of_kind(manifests, "Deployment")["api"]
    invalid = api | {"spec": api["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(invalid, OLDEST, strict=True)


def test_build_fails_without_secrets() -> None:
    for overlay in (MANIFESTS / "overlays").iterdir():
        if not (overlay / "secrets.env").exists():
            build = kustomize(overlay)
            assert build.returncode != 0
            assert "secrets.env" in build.stderr


def test_containers_run_unprivileged_with_a_read_only_root(manifests: list[Manifest]) -> None:
    for workload in workloads(manifests).values():
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container(workload)["resources"]["limits"]
        assert ":" in container(workload)["image"]


def test_references_are_defined(manifests: list[Manifest]) -> None:
    maps, secrets = of_kind(manifests, "ConfigMap"), of_kind(manifests, "Secret")
    for workload in workloads(manifests).values():
        spec = container(workload)
        for source in spec.get("envFrom", []):
            assert source["configMapRef"]["name"] in maps
        for variable in spec.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                known = secrets[reference["name"]]["data"]
                assert reference["key"] in known or reference.get("optional")
        order = [variable["name"] for variable in spec.get("env", [])]
        # Kubernetes expands only variables that are defined earlier.
        if "IMG2IMG_REDIS_URL" in order:
            assert order.index("REDIS_PASSWORD") < order.index("IMG2IMG_REDIS_URL")
        volumes = workload["spec"]["template"]["spec"]["volumes"]
        claims = workload["spec"].get("volumeClaimTemplates", [])
        named = {volume["name"] for volume in volumes} | {claim["metadata"]["name"] for claim in claims}
        assert {mount["name"] for mount in spec["volumeMounts"]} <= named
        assert all(volume["configMap"]["name"] in maps for volume in volumes if "configMap" in volume)
    for name, service in of_kind(manifests, "Service").items():
        [workload] = pods(manifests, service["spec"]["selector"])
        assert workload == name
    [budget] = of_kind(manifests, "PodDisruptionBudget").values()
    assert pods(manifests, budget["spec"]["selector"]) == {"api"}
    api = workloads(manifests)["api"]["spec"]
    assert api["replicas"] > budget["spec"]["minAvailable"]


def test_redis_requires_a_password_and_refuses_the_placeholder(manifests: list[Manifest], tmp_path: Path) -> None:
    redis = container(workloads(manifests)["redis"])
    [config] = [found for name, found in of_kind(manifests, "ConfigMap").items() if name.startswith("redis-")]
    socket, server = tmp_path / "socket", Path(find_redis_server())
    here = f"port 0\nunixsocket {socket}\ndir {tmp_path}\n"
    (tmp_path / "redis.conf").write_text(config["data"]["redis.conf"].replace("dir /data\n", here))
    script = redis["args"][0].replace("/etc/redis", str(tmp_path)).replace("/tmp/redis.conf", f"{tmp_path}/own.conf")

    def start(password: str) -> "subprocess.Popen[str]":
        environment = {"PATH": f"{server.parent}:/usr/bin:/bin", "REDIS_PASSWORD": password}
        return subprocess.Popen([*redis["command"], script], env=environment, stderr=subprocess.PIPE, text=True)

    placeholder = start("CHANGE_ME")
    assert placeholder.communicate(timeout=30)[1] == "set REDIS_PASSWORD in secrets.env\n"
    assert placeholder.returncode == 1
    process = start(SECRETS["REDIS_PASSWORD"])
    try:
        wait_for(lambda: process.poll() is not None or is_redis_ready(f"unix://:{SECRETS['REDIS_PASSWORD']}@{socket}"))
        assert process.poll() is None, process.communicate()[1]
        with Redis(unix_socket_path=str(socket), password=SECRETS["REDIS_PASSWORD"]) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        with Redis(unix_socket_path=str(socket)) as client, pytest.raises(AuthenticationError):
            client.ping()
    finally:
        process.kill()
        process.wait()


def test_network_policies_allow_only_required_connections(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    all_names = set(workloads(manifests))
    assert pods(manifests, policies["nothing"]["spec"]["podSelector"]) == all_names
    assert not policies["nothing"]["spec"].keys() & {"ingress", "egress"}
    for name in all_names:
        assert pods(manifests, policies[name]["spec"]["podSelector"]) == {name}
    [redis_ingress] = policies["redis"]["spec"]["ingress"]
    assert pods(manifests, redis_ingress["from"][0]["podSelector"]) == {"api", "worker", "webhooks"}
    for name in ("api", "worker", "webhooks"):
        redis_egress, *_ = policies[name]["spec"]["egress"]
        assert pods(manifests, redis_egress["to"][0]["podSelector"]) == {"redis"}
        ports = {port["name"] for port in container(workloads(manifests)[name]).get("ports", [])}
        for rule in policies[name]["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= ports


def test_settings_exist(manifests: list[Manifest]) -> None:
    known = ApiSettings.model_fields.keys() | WorkerSettings.model_fields.keys()
    literals = {name for found in of_kind(manifests, "ConfigMap").values() for name in found["data"]}
    names = literals | {one["name"] for each in workloads(manifests).values() for one in container(each).get("env", [])}
    for name in names:
        if name.startswith("IMG2IMG_") and ("METRICS" not in name or find_spec("img2img.app.telemetry")):
            assert name.removeprefix("IMG2IMG_").lower() in known, name


def test_worker_has_one_gpu_or_none(manifests: list[Manifest]) -> None:
    worker = container(workloads(manifests)["worker"])
    device = next(one["value"] for one in worker["env"] if one["name"] == "IMG2IMG_DEVICE")
    assert (device, worker["resources"]["limits"].get("nvidia.com/gpu")) in [("cuda", "1"), ("cpu", None)]


@pytest.fixture
def scaler(manifests: list[Manifest]) -> Manifest:
    found = of_kind(manifests, "ScaledObject")
    if not found:
        assert workloads(manifests)["worker"]["spec"]["replicas"] == 1
        pytest.skip("this overlay has a fixed number of workers")
    assert "replicas" not in workloads(manifests)["worker"]["spec"], "the scaler sets the number of workers"
    return found["worker"]


def test_scaler_uses_metrics_of_the_service(scaler: Manifest, http: httpx.Client) -> None:
    assert scaler["spec"]["scaleTargetRef"] == {"name": "worker"}
    [trigger] = scaler["spec"]["triggers"]
    if not find_spec("img2img.app.telemetry"):
        pytest.skip("this version serves no metrics")
    served = http.get("/metrics").text
    for metric in ("img2img_queue_jobs", "img2img_jobs_running"):
        assert metric in trigger["metadata"]["query"]
        assert f"# TYPE {metric} gauge" in served
