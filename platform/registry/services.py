"""What can be done with models, versions, aliases and uploads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.db.models.functions import Now
from django.http import UnreadablePostError
from django.utils.text import slugify
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from accounts.models import Team, User
from common.errors import Conflict, Invalid, NotFound
from common.figures import listed
from common.told import told
from moe_core.errors import HashMismatch, SpecError
from moe_core.spec import ModelSpec
from registry import store
from registry.models import Alias, Model, ModelVersion, Upload, UploadKind, VersionState
from registry.selectors import model_get, next_number, upload_get, version_get
from registry.sniff import kind_of

ALIAS = re.compile(r"[a-z][a-z0-9-]{0,39}")


@transaction.atomic
def model_create(
    *,
    team: Team,
    name: str,
    created_by: User | None,
    description: str = "",
    licence: str = "",
    source: str = "",
    caller: Caller | None = None,
) -> Model:
    """Make a model without versions; its slug follows from the name."""
    name = _named(name)
    stem = slugify(name)[:50].strip("-") or "model"
    for number in range(1, 1000):
        slug = stem if number == 1 else f"{stem}-{number}"
        try:
            with transaction.atomic():
                model = Model.objects.create(
                    team=team, created_by=created_by, name=name, slug=slug, description=description,
                    licence=licence[:120], source=source[:500],
                )  # fmt: skip
        except IntegrityError:
            continue
        audit_record(caller=caller, team=team, action="model.created", target=model, name=name)
        return model
    raise Conflict(_("There are too many models of this name."))


def model_find_or_create(*, team: Team, name: str, created_by: User | None, **facts: Any) -> Model:
    """Return the team's model of this name (an import adds a version to it), making it when there is none."""
    found = Model.objects.filter(team=team, name=_named(name)).order_by("id").first()
    return found or model_create(team=team, name=name, created_by=created_by, **facts)


@transaction.atomic
def model_edit(
    *, caller: Caller, model_id: int, name: str, description: str = "", licence: str = "", source: str = ""
) -> Model:
    """Change what is said about a model; its versions stay as they are."""
    caller.must_be(Role.EDITOR)
    model = model_get(caller.team, model_id)
    model.name, model.description = _named(name), description[:4000]
    model.licence, model.source = licence[:120], source[:500]
    model.save(update_fields=["name", "description", "licence", "source", "updated_at"])
    audit_record(caller=caller, action="model.edited", target=model, licence=model.licence)
    return model


def version_create(
    *,
    caller_team: Team,
    model: Model,
    spec: ModelSpec | dict[str, Any],
    inspection: dict[str, Any],
    directory: Path | None = None,
    files: store.Files | None = None,
    parent: ModelVersion | None = None,
    lineage: dict[str, Any] | None = None,
    report: dict[str, Any] | None = None,
    created_by: User | None = None,
    note: str = "",
) -> ModelVersion:
    """Make the model's next version out of a directory, or out of files that `store.ingest` has stored already.

    A long ingest belongs before the transaction that guards the row: call `store.ingest` first and pass `files`.
    """
    if model.team_id != caller_team.pk or (parent is not None and parent.model.team_id != caller_team.pk):
        raise NotFound(_("There is no such model."))
    plain = _plain_spec(spec)
    if files is None:
        if directory is None:
            raise TypeError("version_create needs a directory or files")
        files = store.ingest(directory)
    with transaction.atomic():
        store.touch(files)
        Model.objects.select_for_update().get(pk=model.pk)
        version = ModelVersion.objects.create(
            model=model, number=next_number(model), spec=plain, files=files, inspection=inspection, parent=parent,
            size_bytes=sum(entry["bytes"] for entry in files.values()), lineage=lineage or {}, report=report or {},
            created_by=created_by, note=note[:400], verified_at=Now(),
        )  # fmt: skip
        version.refresh_from_db()
        audit_record(
            caller=None, team=caller_team, action="version.created", target=version,
            by=created_by.get_username() if created_by else "", files=len(files), bytes=version.size_bytes,
        )  # fmt: skip
    return version


@transaction.atomic
def version_note_set(*, caller: Caller, version_id: int, note: str) -> ModelVersion:
    """Set the remark of a version, the one thing about it that people may change."""
    caller.must_be(Role.EDITOR)
    version = version_get(caller.team, version_id)
    ModelVersion.objects.filter(pk=version.pk).update(note=note.replace("\0", "").strip()[:400])
    audit_record(caller=caller, action="version.noted", target=version)
    return version_get(caller.team, version_id)


def version_verify(*, caller: Caller, version_id: int) -> ModelVersion:
    """Hash every file again; a version whose bytes changed is marked, so that nothing loads it."""
    caller.must_be(Role.EDITOR)
    version = version_get(caller.team, version_id)
    damaged = sorted(name for name, entry in version.files.items() if not _is_sound(entry["sha256"]))
    state = VersionState.FAILED if damaged else VersionState.READY
    with transaction.atomic():
        ModelVersion.objects.filter(pk=version.pk).update(state=state, verified_at=Now())
        audit_record(caller=caller, action="version.verified", target=version, damaged=damaged)
    return version_get(caller.team, version_id)


@transaction.atomic
def alias_set(*, caller: Caller, model_id: int, name: str, version_id: int) -> Alias:
    """Point a name at one of the model's versions, moving it when it points elsewhere."""
    caller.must_be(Role.EDITOR)
    version = version_get(caller.team, version_id)
    if version.model_id != model_id:
        raise NotFound(_("This version belongs to another model."))
    if not ALIAS.fullmatch(name):
        sentence = _("An alias is a word of small letters, digits and hyphens, at most 40 long.")
        raise Invalid(sentence, fields={"name": sentence})
    alias, _made = Alias.objects.update_or_create(
        model=version.model, name=name, defaults={"version": version}
    )
    audit_record(caller=caller, action="alias.set", target=alias, version=version.number)
    return alias


@transaction.atomic
def alias_remove(*, caller: Caller, model_id: int, name: str) -> None:
    """Take a name away; the version stays."""
    caller.must_be(Role.EDITOR)
    model = model_get(caller.team, model_id)
    if ALIAS.fullmatch(name) and Alias.objects.filter(model=model, name=name).delete()[0]:
        audit_record(caller=caller, action="alias.removed", target=f"{model.slug}@{name}")


def upload_create(
    *,
    caller: Caller,
    name: str,
    source: IO[bytes] | Iterable[bytes],
    sha256: str | None = None,
    expected_bytes: int | None = None,
    kinds: Iterable[UploadKind] = tuple(UploadKind),
) -> Upload:
    """Store a file that somebody sends; its kind is told from its bytes, and only the given kinds are taken."""
    caller.must_be(Role.EDITOR)
    shown, allowed, found = file_name(name), tuple(kinds), list[UploadKind]()

    def check_head(head: bytes) -> None:
        found.append(kind_of(head, shown))
        if found[0] not in allowed:
            sentence = _("A file of the kind %(kind)s is not taken here; send one of: %(kinds)s.")
            words = {"kind": found[0].label, "kinds": listed(kind.label for kind in allowed)}
            raise Invalid(sentence % words, code="refused_format")

    try:
        artifact = store.put_stream(
            source, sha256=sha256 or None, expected_bytes=expected_bytes, max_bytes=settings.MAX_UPLOAD_BYTES,
            check_head=check_head,
        )  # fmt: skip
    except UnreadablePostError as error:
        sentence = _("The connection ended before the file was complete; send it again.")
        raise Invalid(sentence, code="truncated") from error
    with transaction.atomic():
        upload = Upload.objects.create(
            team=caller.team, created_by=caller.user, name=shown, kind=found[0], artifact=artifact,
            size_bytes=artifact.size_bytes,
        )  # fmt: skip
        audit_record(caller=caller, action="upload.created", target=upload, sha256=artifact.sha256)
    return upload


@transaction.atomic
def upload_delete(*, caller: Caller, upload_id: int) -> None:
    """Forget an upload; its bytes go when nothing else refers to them."""
    caller.must_be(Role.EDITOR)
    upload = upload_get(caller.team, upload_id)
    try:
        upload.delete()
    except ProtectedError as error:
        raise Conflict(_("This file is part of a corpus; take it out of the corpus first.")) from error
    audit_record(caller=caller, action="upload.deleted", target=upload.name)


def file_name(name: str) -> str:
    """Return a name fit to be shown: the last part, without control characters. It never becomes a path."""
    last = re.split(r"[\\/]", name)[-1]
    shown = "".join(mark for mark in last if unicodedata.category(mark)[0] != "C").strip()
    if not shown:
        raise Invalid(_("The file needs a name."), fields={"filename": _("Give a name.")})
    return shown[:200]


def _named(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 120:
        sentence = _("A model needs a name of 1 to 120 characters.")
        raise Invalid(sentence, fields={"name": sentence})
    return name


def _plain_spec(spec: ModelSpec | dict[str, Any]) -> dict[str, Any]:
    try:
        parsed = spec if isinstance(spec, ModelSpec) else ModelSpec.parse(spec)
    except SpecError as error:
        raise Invalid(told(str(error))) from error
    return parsed.model_dump(mode="json")


def _is_sound(sha256: str) -> bool:
    try:
        store.verify(sha256)
    except (HashMismatch, NotFound):
        return False
    return True
