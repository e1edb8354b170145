"""A real kube-apiserver with its etcd, built from their sources and run as a process of the test's own."""

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import aiohttp
import yaml  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SOURCES = Path(__file__).parent / "apiserver"
REPOSITORY = Path(__file__).parents[2]
MANIFEST = REPOSITORY / "daemonset" / "kube2iam.yaml"

ADMIN = "admin-token"
_START = 60.0
_COLLECTIONS = {
    "ServiceAccount": "api/v1/namespaces/{namespace}/serviceaccounts",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "DaemonSet": "apis/apps/v1/namespaces/{namespace}/daemonsets",
}


class LaneError(RuntimeError):
    """The lane can't run here; the message says what it needs."""


def build() -> Path:
    """The API server's program, built once for each state of its sources; the first time takes minutes."""
    files = [SOURCES / name for name in ("main.go", "go.mod", "go.sum")]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]
    program = REPOSITORY / ".cache" / f"kube-apiserver-{digest}"
    if not program.exists():
        if shutil.which("go") is None:
            raise LaneError("make test-cluster needs Go 1.26 or newer to build the API server")
        program.parent.mkdir(exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        command = ["nice", "go", "build", "-o", str(unfinished), "."]
        print("building kube-apiserver and etcd: minutes the first time, then never again", flush=True)  # noqa: T201
        result = subprocess.run(command, cwd=SOURCES, check=False, timeout=3600, capture_output=True, text=True)
        if result.returncode:
            raise LaneError(f"the API server can't be built:\n{result.stderr[-2000:]}")
        unfinished.rename(program)
    return program


def manifest() -> list[dict[str, Any]]:
    """The objects of `daemonset/kube2iam.yaml`."""
    return list(yaml.safe_load_all(MANIFEST.read_text()))


class ApiServer:
    """`with ApiServer(folder) as server:` runs it; it may be killed and started again with what it knew."""

    def __init__(self, folder: Path) -> None:
        self._program = build()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.etcd_port, self._peer_port = _free_ports(3)
        self.certificate = folder / "certificates" / "apiserver.crt"
        (folder / "tokens.csv").write_text(f'{ADMIN},admin,1,"system:masters"\n')
        self._key = folder / "sa.key"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, unless it runs, and wait until it is ready."""
        if self._process is not None:
            return
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [
                str(self._program),
                f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self._key}",
                f"--service-account-signing-key-file={self._key}",
                f"--token-auth-file={self._folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--secure-port={self.port}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={self.certificate.parent}",
                "--disable-admission-plugins=ServiceAccount",
                "--shutdown-delay-duration=0s",
            ],
            env={
                **os.environ,
                "ETCD_DIR": str(self._folder / "etcd"),
                "ETCD_PORT": str(self.etcd_port),
                "ETCD_PEER_PORT": str(self._peer_port),
            },
            stdout=log,
            stderr=log,
        )
        log.close()
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                context = ssl.create_default_context(cafile=str(self.certificate))
                with urlopen(f"{self.url}/readyz", context=context, timeout=5) as answer:  # noqa: S310
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise LaneError(f"the API server did not become ready:\n{(self._folder / 'log').read_text()[-3000:]}")

    def save(self) -> Path:
        """A backup of everything it knows; it must not run."""
        return Path(shutil.copytree(self._folder / "etcd", self._folder / "backup", dirs_exist_ok=True))

    def restore(self, backup: Path) -> None:
        """Make it know what it knew then; it must not run."""
        shutil.rmtree(self._folder / "etcd")
        shutil.copytree(backup, self._folder / "etcd")

    def kill(self) -> None:
        """End it without a word, as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


class Admin:
    """What a cluster's administrator does: everything."""

    def __init__(self, server: ApiServer, token: str = ADMIN) -> None:
        self._server = server
        self._token = token

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """Status and decoded body of one request."""
        context = ssl.create_default_context(cafile=str(self._server.certificate))
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self._server.url}/{path}", data=data, headers=headers, ssl=context) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def do(self, method: str, path: str, body: object = None, **options: str) -> Any:
        """The body of a request that must succeed."""
        status, answer = await self.ask(method, path, body, **options)
        assert status < 300, answer
        return answer

    async def apply(self, raw: dict[str, Any], *, dry: bool = False) -> Any:
        """Server-side apply; unknown and repeated fields are errors."""
        collection = _COLLECTIONS[raw["kind"]].format(namespace=raw["metadata"].get("namespace", ""))
        query = "fieldManager=test&force=true&fieldValidation=Strict" + ("&dryRun=All" if dry else "")
        path = f"{collection}/{raw['metadata']['name']}?{query}"
        return await self.do("PATCH", path, raw, content_type="application/apply-patch+yaml")

    async def agent_token(self) -> str:
        """A token of the service account of the manifest, as the kubelet obtains it."""
        path = "api/v1/namespaces/kube-system/serviceaccounts/kube2iam/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str((await self.do("POST", path, request))["status"]["token"])

    async def namespace(self, name: str, **annotations: str) -> None:
        body = {"metadata": {"name": name, "annotations": annotations}}
        await self.do("POST", "api/v1/namespaces", body)

    async def pod(self, name: str, role: str, *, node: str = "n1", namespace: str = "default") -> str:
        """A pod that is bound to a node and has no address yet; returns its uid."""
        body = {
            "metadata": {"name": name, "annotations": {"iam.amazonaws.com/role": role}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        }
        return str((await self.do("POST", f"api/v1/namespaces/{namespace}/pods", body))["metadata"]["uid"])

    async def running(self, name: str, *addresses: str, namespace: str = "default") -> None:
        """The kubelet says that the pod runs and has these addresses."""
        body = {"status": {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": ip} for ip in addresses]}}
        path = f"api/v1/namespaces/{namespace}/pods/{name}/status"
        await self.do("PATCH", path, body, content_type="application/merge-patch+json")

    async def annotate(self, name: str, role: str, *, namespace: str = "default") -> None:
        body = {"metadata": {"annotations": {"iam.amazonaws.com/role": role}}}
        path = f"api/v1/namespaces/{namespace}/pods/{name}"
        await self.do("PATCH", path, body, content_type="application/merge-patch+json")

    async def delete(self, name: str, *, namespace: str = "default") -> None:
        await self.do("DELETE", f"api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    async def compact(self) -> None:
        """Have etcd forget every version but the last."""
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._server.etcd_port}") as session:
            async with session.post("/v3/kv/range", json={"key": "AA=="}) as answer:
                revision = (await answer.json())["header"]["revision"]
            async with session.post("/v3/kv/compaction", json={"revision": revision, "physical": True}) as answer:
                assert answer.status == 200, await answer.text()


def _free_ports(number: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports
