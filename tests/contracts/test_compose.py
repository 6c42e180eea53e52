"""The compose file: its structure is checked here because no container engine has run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
OURS = ("migrate", "web", "reconciler", "worker", "worker-gpu")
SECRETS = ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "TURNOUT_SECRET_KEY")


def test_it_has_every_part_of_an_instance():
    assert set(SERVICES) == {"postgres", "valkey", *OURS}


def test_the_services_are_the_ones_that_tests_run_on():
    assert SERVICES["postgres"]["image"] == "postgres:18"
    assert SERVICES["valkey"]["image"] == "valkey/valkey:9"
    arguments = SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]
    assert "--locale-provider=builtin" in arguments
    assert "--locale=C.UTF-8" in arguments
    # From version 18 on the image keeps its data one folder higher than before.
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_has_a_default(name):
    uses = re.findall(r"\$\{" + name + r"([^}]*)\}", TEXT)
    assert uses, f"{name} is not used"
    assert all(use.startswith(":?") for use in uses), "compose must refuse to start without it"
    assert re.search(rf"^{name}=$", (ROOT / "deploy/docker/env.example").read_text(), re.MULTILINE)


def test_no_password_is_written_down():
    for url in re.findall(r"\w+://[^\s\"']+@", TEXT):
        assert re.search(r":\$\{\w+:\?[^}]*\}@$|:\$\{", url), url


@pytest.mark.parametrize("name", ["postgres", "valkey", "web", "worker", "worker-gpu"])
def test_each_long_lived_server_says_whether_it_is_well(name):
    check = SERVICES[name]["healthcheck"]
    assert {"test", "interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_run_without_privileges(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert re.search(r"^USER turnout$", dockerfile(name), re.MULTILINE)


@pytest.mark.parametrize("name", ["web", "reconciler", "worker", "worker-gpu"])
def test_nothing_starts_before_the_database_is_migrated(name):
    assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_only_the_web_has_a_port_and_only_on_loopback():
    with_ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(with_ports) == ["web"]
    assert all(port.startswith("127.0.0.1:") for port in with_ports["web"])


def test_web_and_workers_share_the_store_and_the_engines_sockets():
    for name in OURS:
        assert SERVICES[name]["volumes"] == ["data:/data", "run:/run/turnout"]
    assert {"data", "run", "postgres"} <= set(COMPOSE["volumes"])


def test_the_gpu_worker_is_a_profile_and_asks_for_a_gpu():
    service = SERVICES["worker-gpu"]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_two_workers_are_two_nodes():
    assert (
        SERVICES["worker"]["environment"]["TURNOUT_NODE"]
        != SERVICES["worker-gpu"]["environment"]["TURNOUT_NODE"]
    )


def test_the_web_image_installs_no_torch():
    text = dockerfile("web")
    assert "web.in" in text
    for word in ("compute.in", "run.in", "model.in", "torch=="):
        assert word not in text
    names = {
        re.split(r"[=\[<>; ]", line)[0] for line in (ROOT / "requirements/web.in").read_text().splitlines()
    }
    assert names.isdisjoint({"torch", "triton", "safetensors", "transformers", "-r"})


@pytest.mark.parametrize("name", ["web", "worker"])
def test_images_copy_only_what_exists(name):
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile(name), re.MULTILINE):
        sources = [word for word in line.split() if not word.startswith("--")][:-1]
        for source in sources:
            assert (ROOT / source).exists(), f"{name}.Dockerfile copies {source}, which does not exist"
            assert f"!{source.split('/')[0]}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_it_says_that_it_has_not_been_run():
    assert "NOT been run" in TEXT


def dockerfile(service: str) -> str:
    return (ROOT / SERVICES[service]["build"]["dockerfile"]).read_text()
