"""A whole instance for the tests of one file: a web process on a real port, an agent, engines of tiny models."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from common import live
from deployments.models import Deployment
from deployments.services import deployment_create, deployment_update
from moe_core.model.decoder import Decoder
from routing.services import map_create
from standalone import web
from tests.apps.deployments.stack import SETTINGS, ready_replicas, real_version, serving_stack, until
from tests.moe_core.engine.model_dirs import tiny_model
from tests.people import People, make_people
from workers.node_agent import NodeAgent

ROOT = Path(__file__).parents[3]
DOMAINS = {
    "num_experts": 4,
    "general_experts": [3],
    "domains": [
        {"code": "support", "name_en": "Support", "name_zh": "客服", "experts": [0]},
        {"code": "copy", "name_en": "Copy", "name_zh": "文案", "experts": [1, 2]},
    ],
}


class Overrides:
    """Stands in for pytest-django's settings, which live for one test only."""

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(settings, name, value)


@dataclass
class Web:
    """One web process."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Instance:
    """What a test needs to speak with the instance."""

    people: People
    web: Web
    agent: NodeAgent
    folder: Path
    deployments: dict[str, Deployment] = field(default_factory=dict)

    def key(self, who: str = "owner", *scopes: str) -> str:
        """A fresh API key."""
        return self.people.bearer(who, *(scopes or ("infer",)))["authorization"].removeprefix("Bearer ")

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """One request by the standard library: status, headers, JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.web.port, timeout=60)
        try:
            raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            given = {"content-type": "application/json", **(headers or {})}
            if key:
                given["authorization"] = f"Bearer {key}"
            link.request(method, path, raw, given)
            reply = link.getresponse()
            text = reply.read()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, found, json.loads(text) if text else None
        finally:
            link.close()

    def cookie(self, who: str = "owner") -> str:
        """The session of a signed-in browser."""
        return f"sessionid={self.people.client(who).cookies['sessionid'].value}"

    def serve(
        self, name: str, *, who: str = "owner", model: Decoder | None = None, domains: bool = True, **more: Any
    ) -> Deployment:
        """Deploy a tiny model and wait until it answers."""
        caller = getattr(self.people, who)
        version = real_version(self.people, self.folder, model=model, name=name, who=who)
        domain_map = map_create(caller=caller, name=name, plan=DOMAINS) if domains else None
        deployment = deployment_create(
            caller=caller,
            name=name,
            version_id=version.pk,
            domain_map_id=domain_map.pk if domain_map else None,
            settings=SETTINGS | more,
        )
        until(lambda: Deployment.objects.get(pk=deployment.pk).live_revision and ready_replicas(deployment))
        self.deployments[name] = deployment
        return deployment

    def update(self, name: str) -> None:
        """Want another version of a model that is served."""
        version = real_version(self.people, self.folder, model=tiny_model(9), name=name)
        deployment_update(
            caller=self.people.owner, deployment_id=self.deployments[name].pk, version_id=version.pk
        )


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Like production's, but with the test's database."""
    parts = conninfo_to_dict(settings.DATABASE_URL)
    url = make_conninfo(**{**parts, "dbname": connection.settings_dict["NAME"]})
    return {
        **os.environ,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "config.settings.test",
        "TURNOUT_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        **more,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def web_process(folder: Path, *, drain_s: int = 5, **more: str) -> Iterator[Web]:
    """Run uvicorn with the flags of production; `more` goes into its environment."""
    port = free_port()
    with (folder / f"web-{secrets.token_hex(3)}.log").open("ab") as log:
        process = subprocess.Popen(
            web.command("127.0.0.1", port, drain_s), cwd=ROOT, env=environment(folder, **more), stdout=log, stderr=log
        )
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, "the web process ended; see its log"
        yield Web(port, process)
    finally:
        process.terminate()
        try:
            process.wait(drain_s + 15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_instance(folder: Path, *, redis_url: str = "") -> Iterator[Instance]:
    """People, a web process and a serving stack, on a database that is emptied afterwards."""
    redis_url = redis_url or settings.REDIS_URL
    live._publisher.cache_clear()
    with (
        override_settings(STORE_DIR=folder / "store", REDIS_URL=redis_url),
        web_process(folder, REDIS_URL=redis_url) as running,
    ):
        try:
            with serving_stack(Overrides(), folder) as agent:
                yield Instance(make_people(), running, agent, folder)
        finally:
            print(
                *(f"== {log.name}\n{log.read_text()[-4000:]}" for log in folder.glob("*.log")),
                file=sys.stderr,
            )
            live._publisher.cache_clear()
            call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=True)
