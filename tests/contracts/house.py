"""One of everything that a team can own, under the number that `tests.contracts.routes` puts into addresses.

Every name holds MARK, so that an answer that tells an outsider anything of the house is known by that word.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib.sessions.models import Session
from django.db.models import Model as Row
from django.utils import timezone

from accounts.caller import Caller
from accounts.models import ApiToken, Invitation, Membership, User
from corpora.models import Corpus, CorpusFile
from deployments.models import Deployment, DeploymentRevision, Node, Replica
from jobs.models import Job, JobEvent
from layouts.models import Layout, LayoutRevision
from moe_core.spec import LayoutSpec
from registry.models import Artifact, Model, ModelVersion, Upload
from routing.models import Domain, DomainMap

NUMBER = 4242
MARK = "amaranth"
SPEC = {
    "family": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1,
    "eos_token_ids": [2], "moe": None,
}  # fmt: skip
LAYOUT = LayoutSpec(moe_layers=(1, 3), num_experts=8, top_k=2).model_dump(mode="json")


def furnish(owner: Caller) -> list[Row]:
    """Make the house's things and return them."""
    ours: dict[str, Any] = {"team": owner.team, "created_by": owner.user, "id": NUMBER}
    sha = "ab" * 32
    artifact = Artifact.objects.create(sha256=sha, size_bytes=10)
    model = Model.objects.create(**ours, name=f"Atlas {MARK}", slug=f"atlas-{MARK}")
    version = ModelVersion.objects.create(
        id=NUMBER, model=model, number=1, spec=SPEC, size_bytes=10, created_by=owner.user,
        files={"config.json": {"sha256": sha, "bytes": 10}}, inspection={"family": "llama"},
    )  # fmt: skip
    upload = Upload.objects.create(**ours, name=f"{MARK}.jsonl", kind="jsonl", artifact=artifact, size_bytes=10)
    layout = Layout.objects.create(**ours, name=f"Eight {MARK}", base_version=version, spec=LAYOUT)
    LayoutRevision.objects.create(layout=layout, revision=1, base_version=version, spec=LAYOUT)
    domain_map = DomainMap.objects.create(**ours, name=f"Shop {MARK}", num_experts=8, general_experts=[1, 2])
    Domain.objects.create(map=domain_map, code="support", name_en=f"Support {MARK}", name_zh="客服", experts=[0])
    corpus = Corpus.objects.create(**ours, name=f"Logs {MARK}")
    file = CorpusFile.objects.create(id=NUMBER, corpus=corpus, upload=upload)
    job = Job.objects.create(
        **ours,
        kind="import",
        name=f"import {MARK}",
        state="failed",
        error=f"no space for {MARK}",
        ended_at=timezone.now(),
        last_seq=1,
    )
    JobEvent.objects.create(
        job=job, seq=1, kind="log", payload={"level": "info", "text": f"began {MARK}"}, at=timezone.now()
    )
    deployment = Deployment.objects.create(
        **ours, name=f"{MARK}-prod", desired_version=version, desired_replicas=0
    )
    DeploymentRevision.objects.create(deployment=deployment, number=1, version=version)
    node = Node.objects.create(name="node-1")
    replica = Replica.objects.create(
        id=NUMBER,
        deployment=deployment,
        version=version,
        revision=1,
        node=node,
        state="stopped",
        wanted="drain",
    )
    token = ApiToken.objects.create(**ours, name=f"ci {MARK}", prefix="tt_x", digest="d" * 64, scopes=["read"])
    member = Membership.objects.create(
        id=NUMBER, user=User.objects.create_user(f"maria-{MARK}"), team=owner.team, role="viewer"
    )
    invitation = Invitation.objects.create(
        **ours,
        note=f"for {MARK}",
        digest="e" * 64,
        role="viewer",
        expires_at=timezone.now() + timedelta(days=7),
    )
    return [
        model, version, upload, layout, domain_map, corpus, file, job, deployment, replica, token, member, invitation,
    ]  # fmt: skip


def row_counts() -> dict[str, int]:
    """Return how many rows each table holds; sessions aside, which belong to nobody's house."""
    return {
        model._meta.label: model._default_manager.count()
        for model in apps.get_models()
        if model is not Session
    }


def contents(rows: list[Row]) -> list[dict[str, Any]]:
    """Return every column of the things as they are in the database now."""
    return [type(row)._default_manager.filter(pk=row.pk).values().get() for row in rows]
