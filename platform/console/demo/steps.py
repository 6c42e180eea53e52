"""The eight steps of the main job, each through the public REST API alone."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from console.demo.client import ApiError
from console.demo.state import Journey, Progress
from corpora.samples import DOMAINS, build

BUILTIN_MODEL = "smollm2-135m-instruct"
NUM_EXPERTS, TOP_K = 8, 2
READY_WITHIN_S = 180.0
BOARD_WITHIN_S = 15.0


def bring_model(journey: Journey) -> None:
    """Import the small real model; an earlier run's version of the same name is used again."""
    with journey.step("Import the model") as entry:
        job = journey.api.post(
            "/api/v1/jobs/",
            {
                "kind": "import",
                "spec": {"name": journey.label, "source": {"kind": "builtin", "name": BUILTIN_MODEL}},
            },
        )
        job = journey.api.wait(job["id"], Progress(sys.stdout.isatty()))
        version = journey.api.get(f"/api/v1/versions/{job['result_version']}/")
        journey.ids["base"] = version["id"]
        entry.update(
            job=job["id"],
            version=version["id"],
            files=len(version["files"]),
            inspection=version["inspection"],
        )


def lay_experts(journey: Journey) -> None:
    """Draw the layout and see what it costs."""
    with journey.step("Lay the experts") as entry:
        version = journey.api.get(f"/api/v1/versions/{journey.ids['base']}/")
        spec = {
            "moe_layers": moe_layers(version["spec"]["num_hidden_layers"]),
            "num_experts": NUM_EXPERTS,
            "top_k": TOP_K,
        }
        cost = journey.api.post("/api/v1/layouts/preview/", {"base_version": version["id"], "spec": spec})
        layout = journey.api.post(
            "/api/v1/layouts/", {"name": journey.label, "base_version": version["id"], "spec": spec}
        )
        journey.ids["layout"] = layout["id"]
        entry.update(layout=layout["id"], spec=spec, cost=cost)


def moe_layers(num_layers: int) -> list[int]:
    """The upper third: enough experts to specialise; what lies below is computed once and remembered."""
    return list(range(2 * num_layers // 3, num_layers))


def map_domains(journey: Journey) -> None:
    """Map each business domain to its expert; the rest stay general."""
    with journey.step("Map the domains") as entry:
        domains = [
            {
                "code": domain.code,
                "name_en": domain.name_en,
                "name_zh": domain.name_zh,
                "examples": list(domain.examples),
                "experts": list(domain.experts),
            }
            for domain in DOMAINS
            if domain.experts
        ]
        taken = {expert for domain in domains for expert in domain["experts"]}
        general = [expert for expert in range(NUM_EXPERTS) if expert not in taken]
        made = journey.api.post(
            "/api/v1/domain-maps/",
            {
                "name": journey.label,
                "num_experts": NUM_EXPERTS,
                "domains": domains,
                "general_experts": general,
            },
        )
        journey.ids["map"] = made["id"]
        entry.update(map=made["id"], domains=[domain["code"] for domain in domains], general_experts=general)


def bring_logs(journey: Journey) -> None:
    """Upload the real logs, file by file."""
    with journey.step("Upload the logs") as entry, tempfile.TemporaryDirectory() as folder:
        corpus = journey.api.post("/api/v1/corpora/", {"name": journey.label})
        journey.ids["corpus"] = corpus["id"]
        for file in build(Path(folder)):
            journey.api.upload(f"/api/v1/corpora/{corpus['id']}/files/", file.path, {})
        corpus = journey.api.get(f"/api/v1/corpora/{corpus['id']}/")
        entry.update(corpus=corpus["id"], counts=corpus["counts"])


def tune(journey: Journey) -> None:
    """Upcycle, specialise, tune the router, and measure it all on held-out logs."""
    with journey.step("Build and tune") as entry:
        options: dict[str, Any] = (
            {"specialise_steps": 4, "route_steps": 2, "held_out_windows": 2} if journey.quick else {}
        )
        ids = journey.ids
        job = journey.api.post(
            "/api/v1/jobs/",
            {
                "kind": "tune",
                "name": journey.label,
                "spec": {
                    "model_version": ids["base"],
                    "layout": ids["layout"],
                    "domain_map": ids["map"],
                    "corpus": ids["corpus"],
                    "tune": options,
                },
            },
        )
        job = journey.api.wait(job["id"], Progress(sys.stdout.isatty()))
        ids["version"] = job["result_version"]
        journey.report["tuning"] = job["report"]["tuning"]
        entry.update(job=job["id"], version=job["result_version"])


def deploy(journey: Journey) -> None:
    """Serve the new version and wait until it answers for itself."""
    with journey.step("Deploy") as entry:
        ids = journey.ids
        made = journey.api.post(
            "/api/v1/deployments/",
            {"name": journey.label, "version": ids["version"], "replicas": 1, "domain_map": ids["map"]},
        )
        ids["deployment"] = made["id"]
        until, seen = time.monotonic() + READY_WITHIN_S, ""
        while (state := journey.api.get(f"/api/v1/deployments/{made['id']}/"))["phase"] != "ready":
            if state["phase"] != seen:
                seen = state["phase"]
                print(f"  {seen}", flush=True)
            if time.monotonic() > until or seen == "failed":
                raise ApiError("GET", f"/api/v1/deployments/{made['id']}/", 200, f"the deployment is {seen}")
            time.sleep(0.5)
        entry.update(deployment=made["id"], live_version=state["live_version"])


QUESTIONS = {
    "support": "How do I change the password of my account?",
    "copy": "Write a short introduction for a small library that draws progress bars.",
    "analysis": "What does the median of a list of numbers tell me?",
    "contracts": "What does an open source licence allow me to do?",
}


def use(journey: Journey) -> None:
    """Ask each domain's question as a client would, streaming, and read the answers."""
    with journey.step("Use it") as entry:
        entry["answers"] = []
        for domain, question in QUESTIONS.items():
            entry["answers"].append(ask(journey, domain, question))


def ask(journey: Journey, domain: str, question: str) -> dict[str, Any]:
    """Stream one chat completion and measure what its reader sees."""
    body = {
        "model": journey.label,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "domain": domain,
    }
    began, first, text, tokens = time.monotonic(), 0.0, "", 0
    for event in journey.api.stream("/v1/chat/completions", body):
        if "error" in event:
            raise ApiError("POST", "/v1/chat/completions", 200, event["error"]["message"])
        for choice in event["choices"]:
            piece = choice["delta"].get("content") or ""
            first = first or (time.monotonic() - began if piece else 0.0)
            text += piece
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    total = time.monotonic() - began
    if not text.strip():
        raise ApiError("POST", "/v1/chat/completions", 200, "the answer is empty")
    print(f"  [{domain}] {question}\n    {text.strip()[:160]!r} …", flush=True)
    rate = (tokens - 1) / (total - first) if tokens > 1 and total > first else None
    return {
        "domain": domain,
        "question": question,
        "answer": text,
        "completion_tokens": tokens,
        "first_token_seconds": round(first, 3),
        "tokens_per_second": round(rate, 1) if rate else None,
    }


def watch(journey: Journey) -> None:
    """Read from the board what those answers did to the experts."""
    with journey.step("Watch") as entry:
        path = f"/api/v1/deployments/{journey.ids['deployment']}/routing/?window=600"
        until = time.monotonic() + BOARD_WITHIN_S
        while not (board := journey.api.get(path))["total"]:
            if time.monotonic() > until:
                raise ApiError("GET", path, 200, "the board has counted nothing")
            time.sleep(0.5)
        entry.update(total=board["total"], max_vio=board["max_vio"], asleep=board.get("asleep"))
        print(f"  {board['total']:,} assignments counted, MaxVio {board['max_vio']:.2f}", flush=True)


STEPS = (bring_model, lay_experts, map_domains, bring_logs, tune, deploy, use, watch)
