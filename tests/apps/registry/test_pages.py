"""The pages of the registry, for people."""

from __future__ import annotations

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from registry.models import Upload
from registry.services import alias_set
from tests.apps.registry.fixtures import make_version, moe_spec

pytestmark = pytest.mark.django_db
REPORT = {
    "before": {
        "loss": 3.2,
        "loss_by_domain": {"support": 3.2},
        "mapped_share": 0.24,
        "max_vio": 2.1,
        "entropy": 0.9,
    },
    "after": {
        "loss": 2.6,
        "loss_by_domain": {"support": 2.6},
        "mapped_share": 0.85,
        "max_vio": 1.1,
        "entropy": 0.95,
    },
    "control": {
        "loss": 2.9,
        "loss_by_domain": {"support": 2.9},
        "mapped_share": 0.2,
        "max_vio": 1.3,
        "entropy": 0.9,
    },
}


@pytest.fixture
def line(people, tmp_path):
    """A dense version and the mixture that was tuned from it."""
    dense = make_version(people, tmp_path, lineage={"kind": "import", "job_id": 1})
    mixture = make_version(
        people, tmp_path, spec=moe_spec(), parent=dense, report=REPORT, lineage={"kind": "tune", "job_id": 2}
    )
    alias_set(caller=people.owner, model_id=dense.model_id, name="champion", version_id=mixture.pk)
    return dense, mixture


def pages(line):
    dense, mixture = line
    return [
        reverse("registry:list"),
        reverse("registry:detail", args=[dense.model_id]),
        reverse("registry:version", args=[dense.pk]),
        reverse("registry:version", args=[mixture.pk]),
    ]


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_every_page_opens_in_both_languages_and_hides_from_outsiders(people, line, language):
    for page in pages(line):
        for who in ("owner", "teammate"):
            reply = people.client(who).get(page, headers={"accept-language": language})
            assert reply.status_code == 200, page
        outside = people.client("outsider").get(page).status_code
        assert outside == (200 if page == reverse("registry:list") else 404)
    assert b"Tiny" not in people.client("outsider").get(reverse("registry:list")).content


def test_a_version_shows_files_lineage_and_what_the_tuning_did(people, line):
    dense, mixture = line
    text = people.client("owner").get(reverse("registry:version", args=[mixture.pk])).content.decode()
    for entry in mixture.files.values():
        assert entry["sha256"] in text
    assert reverse("registry:version", args=[dense.pk]) in text
    assert "18.8" in text  # 1 - 2.6 / 3.2
    assert "8 experts in 2 of 4 layers" in text


def test_an_upload_opens_the_import(people):
    file = SimpleUploadedFile("m.gguf", b"GGUF" + b"\0" * 40)
    reply = people.client("owner").post(reverse("registry:upload"), {"file": file})
    assert (reply.status_code, reply["Location"]) == (
        302,
        f"{reverse('registry:list')}?upload={Upload.objects.get().pk}",
    )
    refused = people.client("owner").post(
        reverse("registry:upload"),
        {"file": SimpleUploadedFile("m.gguf", b"\x80\x02evil")},
        headers={"accept": "application/json"},
    )
    assert (refused.status_code, refused.json()["code"]) == (422, "refused_format")


JSONL, SAFETENSORS = b'{"prompt": "a", "completion": "b"}\n', (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(("name", "body", "way_out"), [
    ("logs.jsonl", JSONL, "page of logs and corpora"), ("part.safetensors", SAFETENSORS, "whole folder"),
])  # fmt: skip
def test_what_is_no_whole_model_is_not_uploaded_as_one_and_the_way_out_is_told(people, name, body, way_out):
    reply = people.client("owner").post(
        reverse("registry:upload"),
        {"file": SimpleUploadedFile(name, body)},
        headers={"accept": "application/json"},
    )
    assert (reply.status_code, reply.json()["code"]) == (422, "refused_format")
    assert way_out in reply.json()["detail"]
    assert not Upload.objects.exists()


def test_the_upload_stands_above_the_import_of_what_is_uploaded(people):
    client = people.client("owner")
    client.post(reverse("registry:upload"), {"file": SimpleUploadedFile("m.gguf", b"GGUF" + b"\0" * 40)})
    page = client.get(reverse("registry:list")).content.decode()
    panel = page[page.index('id="from-upload"') : page.index('id="from-folder"')]
    assert panel.index("dropzone") < panel.index("Start the import")


def test_every_way_to_an_own_model_leads_there(people):
    client = people.client("owner")
    overview = client.get("/").content.decode()
    assert f"{reverse('registry:list')}?import=upload" in overview
    assert f"{reverse('jobs:import_model')}?source=folder" in overview
    folder = client.get(reverse("jobs:import_model"), {"source": "folder"})
    assert folder.context["form"]["source"].value() == "folder"
    assert f"{reverse('registry:list')}?import=upload" in folder.content.decode()


def test_people_keep_aliases_notes_and_descriptions(people, line):
    dense, _mixture = line
    client = people.client("owner")
    client.post(
        reverse("registry:alias_set", args=[dense.model_id]), {"name": "champion", "version": dense.pk}
    )
    assert dense.model.aliases.get().version == dense
    client.post(reverse("registry:alias_remove", args=[dense.model_id]), {"name": "champion"})
    assert not dense.model.aliases.exists()
    client.post(reverse("registry:version_note", args=[dense.pk]), {"note": "as it \0came"})
    client.post(reverse("registry:alias_remove", args=[dense.model_id]), {"name": "\0"})
    client.post(reverse("registry:edit", args=[dense.model_id]), {"name": "Tiny", "licence": "MIT"})
    dense.refresh_from_db()
    assert (dense.note, dense.model.licence) == ("as it came", "MIT")
    assert client.post(reverse("registry:version_verify", args=[dense.pk])).status_code == 302


@pytest.mark.parametrize("name", ["edit", "alias_set", "alias_remove"])
def test_a_viewer_changes_no_model(people, line, name):
    url = reverse(f"registry:{name}", args=[line[0].model_id])
    assert people.client("teammate").post(url, {"name": "x"}).status_code == 403
    assert people.client("outsider").post(url, {"name": "champion", "version": line[0].pk}).status_code == 404


def test_the_admin_shows_versions_and_changes_none(people, line):
    user = people.owner.user
    user.is_staff = user.is_superuser = True
    user.save()
    client = people.client("owner")
    assert client.get("/admin/registry/modelversion/").status_code == 200
    assert client.get(f"/admin/registry/modelversion/{line[0].pk}/change/").status_code == 200
    assert client.get(f"/admin/registry/model/{line[0].model_id}/change/").status_code == 200
    assert client.post(f"/admin/registry/modelversion/{line[0].pk}/change/", {"note": "x"}).status_code == 403
    assert client.get("/admin/registry/artifact/").status_code == 200


def test_a_version_that_an_operation_made_shows_its_lineage_and_its_report(people, tmp_path, line):
    _dense, mixture = line
    report = {
        "kind": "add", "expert": 8, "keeps_function": True,
        "loss_before": {"support": 2.6, "copy": 2.0}, "loss_after": {"support": 2.6, "copy": 2.2},
        "kl": {"support": 0.0, "copy": 0.1},
    }  # fmt: skip
    lineage = {"kind": "operate", "job_id": 7, "operation": {"kind": "add", "source": 0}}
    made = make_version(
        people, tmp_path, spec=moe_spec(num_experts=9), parent=mixture, report=report, lineage=lineage
    )
    text = people.client("owner").get(reverse("registry:version", args=[made.pk])).content.decode()
    assert f"Add one: made from {mixture.label} by job 7" in text
    assert "What the operation did" in text
    assert "loss on held-out logs, lower is better" in text
    assert "by 0.200 nats a token" in text
    assert text.count('data-state="caution"') >= 2


def test_the_version_and_its_job_say_the_same_of_a_tuning(people, line):
    from registry.describe import report_verdict
    from registry.tuned import tuned_verdict

    verdict = report_verdict(line[1])
    assert verdict == tuned_verdict(*(REPORT[key] for key in ("before", "after", "control")))
    assert verdict is not None
    assert verdict.state == "ok"


@pytest.mark.parametrize(
    ("language", "title", "mean"),
    [("en", "routed, by layer", "mean, before"), ("zh-hans", "各层的路由情况", "平均，之前")],
)
def test_a_version_shows_how_tokens_were_routed_layer_by_layer(people, tmp_path, line, language, title, mean):
    rows = [{"layer": layer, "max_vio": 0.25 * layer, "drop_rate": 0.125, "margin": None} for layer in (1, 3)]
    routing = {"layers": rows, "mean": {"max_vio": 0.5, "drop_rate": 0.125, "saturation": 0.875}}
    report = {
        "before": {**REPORT["before"], "routing": {"layers": rows, "mean": {"max_vio": 0.625}}},
        "after": {**REPORT["after"], "routing": routing},
    }
    made = make_version(
        people, tmp_path, spec=moe_spec(), parent=line[1], report=report, lineage={"kind": "tune"}
    )
    client = people.client("owner")
    client.cookies["django_language"] = language
    text = client.get(reverse("registry:version", args=[made.pk])).content.decode()
    assert title in text and mean in text
    table = text[text.index(title) :]
    # The means, then layers 1 and 3; nothing is made up for what was not measured.
    cells = [
        cell.split("</td>")[0] for cell in table[: table.index("</table>")].split('<td class="num">')[1:]
    ]
    assert cells == ["0.63", "—", "—", "0.50", "0.125", "0.88", "0.25", "0.125", "—", "0.75", "0.125", "—"]
    api = client.get(f"/api/v1/versions/{made.pk}/").json()
    assert api["report"]["after"]["routing"]["mean"]["saturation"] == 0.875
    # A version from before reports had them shows no table.
    assert title not in client.get(reverse("registry:version", args=[line[1].pk])).content.decode()
