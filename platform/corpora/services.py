"""What can be done with corpora."""

from __future__ import annotations

import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from common.errors import Conflict, DomainError, Invalid, StaleLease
from common.figures import listed
from common.holders import this_process
from common.leases import Claim, lease_claim, lease_guarded, lease_release
from common.loops import wake
from common.uses import refuse_used
from corpora.encodings import NAMED
from corpora.intake import joined, read_file
from corpora.models import Corpus, CorpusFile, FileState
from corpora.reasons import Unusable
from corpora.rows import DOMAIN
from corpora.selectors import corpus_get, file_get
from registry.models import Upload, UploadKind
from registry.selectors import upload_get
from registry.services import upload_create

KINDS = (UploadKind.JSONL, UploadKind.CSV)
# What is larger is read by the reconciler, so that no page waits for it.
READ_AT_ONCE_BYTES = 16 << 20
MAX_FILES = 200
LEASE_TTL_S = 30
# Kept in English and said in the reader's language (`corpora.describe.note`).
SAMPLE_NOTE = gettext_noop("Real texts from installed packages, in several domains.")


@transaction.atomic
def corpus_create(*, caller: Caller, name: str, description: str = "") -> Corpus:
    """Make an empty corpus."""
    caller.must_be(Role.EDITOR)
    try:
        with transaction.atomic():
            corpus = Corpus.objects.create(
                team=caller.team,
                created_by=caller.user,
                name=_named(name),
                description=description.strip()[:400],
            )
    except IntegrityError as error:
        sentence = _("Your team has a corpus named %(name)s already; choose another name.") % {"name": name}
        raise Conflict(sentence, code="name_taken", fields={"name": sentence}) from error
    audit_record(caller=caller, action="corpus.created", target=corpus)
    return corpus


@transaction.atomic
def corpus_delete(*, caller: Caller, corpus_id: int) -> None:
    """Remove a corpus; runs that used it keep the rows that they were given. Raises Conflict while an open job uses it."""
    caller.must_be(Role.EDITOR)
    corpus = corpus_get(caller.team, corpus_id)
    refuse_used("corpus", caller.team.pk, corpus_id, corpus.name)
    corpus.delete()
    audit_record(caller=caller, action="corpus.deleted", target=corpus)


def file_add(
    *,
    caller: Caller,
    corpus_id: int,
    name: str,
    source: IO[bytes] | Iterable[bytes],
    default_domain: str = "",
    encoding: str = "",
    sha256: str | None = None,
    expected_bytes: int | None = None,
) -> CorpusFile:
    """Store a file of logs and read it; a large one is read a little later."""
    caller.must_be(Role.EDITOR)
    corpus = corpus_get(caller.team, corpus_id)
    domain, named = checked_domain(default_domain), checked_encoding(encoding)
    upload = upload_create(
        caller=caller, name=name, source=source, sha256=sha256, expected_bytes=expected_bytes, kinds=KINDS
    )
    return _attach(caller, corpus, upload, domain, named)


def upload_add(
    *, caller: Caller, corpus_id: int, upload_id: int, default_domain: str = "", encoding: str = ""
) -> CorpusFile:
    """Add a file that was uploaded before."""
    caller.must_be(Role.EDITOR)
    corpus, upload = corpus_get(caller.team, corpus_id), upload_get(caller.team, upload_id)
    if upload.kind not in KINDS:
        sentence = _("%(name)s is a %(kind)s file; logs are JSON Lines or CSV.")
        raise Invalid(
            sentence % {"name": upload.name, "kind": upload.get_kind_display()}, code="refused_format"
        )
    return _attach(caller, corpus, upload, checked_domain(default_domain), checked_encoding(encoding))


def file_edit(
    *,
    caller: Caller,
    corpus_id: int,
    file_id: int,
    default_domain: str | None = None,
    encoding: str | None = None,
) -> CorpusFile:
    """Say which domain the rows without one belong to, or in which encoding it is, and read the file again."""
    caller.must_be(Role.EDITOR)
    file = file_get(corpus_get(caller.team, corpus_id), file_id)
    with transaction.atomic():
        changes: dict[str, Any] = {}
        if default_domain is not None:
            changes["default_domain"] = checked_domain(default_domain)
        if encoding is not None:
            changes["encoding"] = checked_encoding(encoding)
        CorpusFile.objects.filter(pk=file.pk).update(state=FileState.WAITING, **changes)
        audit_record(caller=caller, action="corpus.file_edited", target=file, **changes)
    return _read_now_or_later(file)


def file_remove(*, caller: Caller, corpus_id: int, file_id: int) -> Corpus:
    """Take a file out; files whose rows repeated its rows are read again, for theirs count now."""
    caller.must_be(Role.EDITOR)
    corpus = corpus_get(caller.team, corpus_id)
    file = file_get(corpus, file_id)
    with transaction.atomic():
        file.delete()
        Corpus.objects.filter(pk=corpus.pk).update(is_unsettled=True)
        corpus.files.filter(counts__duplicates__gt=0).update(state=FileState.WAITING)
        audit_record(caller=caller, action="corpus.file_removed", target=corpus, file=file.upload.name)
    if not corpus_settle(corpus.pk):
        wake("corpora")
    return corpus_get(caller.team, corpus_id)


def corpus_from_samples(*, caller: Caller) -> Corpus:
    """Make a corpus out of the sample logs, file by file, through the same door as every upload."""
    from corpora.samples import SampleError, build

    taken = set(Corpus.objects.filter(team=caller.team).values_list("name", flat=True))
    stem = _("Sample logs")
    name = next(name for n in range(1, 10_000) if (name := stem if n == 1 else f"{stem} {n}") not in taken)
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = build(Path(folder))
        except SampleError as error:
            raise Conflict(str(error), code="no_samples") from error
        corpus = corpus_create(caller=caller, name=name, description=SAMPLE_NOTE)
        for sample in written:
            with sample.path.open("rb") as source:
                file_add(caller=caller, corpus_id=corpus.pk, name=sample.path.name, source=source)
    return corpus_get(caller.team, corpus.pk)


def corpus_settle(corpus_id: int) -> bool:
    """Read what waits and put the corpus together again; False when somebody else is at it."""
    holder = f"{this_process()}/{secrets.token_hex(4)}"
    claim = lease_claim(resource=f"corpus:{corpus_id}", holder=holder, ttl_s=LEASE_TTL_S)
    if claim is None:
        return False
    try:
        unread = CorpusFile.objects.filter(
            corpus_id=corpus_id, state__in=[FileState.WAITING, FileState.VALIDATING]
        ).select_related("upload")
        while (file := unread.order_by("id").first()) is not None:
            _read(file, claim)
        _join(corpus_id, claim)
    finally:
        lease_release(claim)
    return True


def checked_domain(code: str) -> str:
    """Return a domain code, or "" for none; raise Invalid for anything else."""
    code = (code or "").strip().lower()
    if code and not DOMAIN.fullmatch(code):
        sentence = _("A domain code is 2 to 12 small letters, digits or hyphens, beginning with a letter.")
        raise Invalid(sentence, fields={"default_domain": sentence})
    return code


def checked_encoding(name: str) -> str:
    """Return an encoding of `corpora.encodings.NAMED`, or "" for none; raise Invalid for anything else."""
    name = (name or "").strip().lower()
    if name and name not in NAMED:
        known = listed(NAMED)
        sentence = _("There is no encoding “%(name)s” here; there are: %(known)s.")
        words = {"name": name[:40], "known": known}
        raise Invalid(sentence % words, fields={"encoding": sentence % words})
    return name


def _attach(caller: Caller, corpus: Corpus, upload: Upload, domain: str, encoding: str) -> CorpusFile:
    if corpus.files.count() >= MAX_FILES:
        raise Invalid(_("A corpus takes %(limit)s files at most.") % {"limit": MAX_FILES})
    try:
        with transaction.atomic():
            file = CorpusFile.objects.create(
                corpus=corpus, upload=upload, default_domain=domain, encoding=encoding
            )
            audit_record(caller=caller, action="corpus.file_added", target=corpus, file=upload.name)
    except IntegrityError as error:
        raise Conflict(_("This file is in the corpus already."), code="already_there") from error
    return _read_now_or_later(file)


def _read_now_or_later(file: CorpusFile) -> CorpusFile:
    if file.upload.size_bytes > READ_AT_ONCE_BYTES or not corpus_settle(file.corpus_id):
        wake("corpora")
    return CorpusFile.objects.select_related("upload", "corpus").get(pk=file.pk)


def _read(file: CorpusFile, claim: Claim) -> None:
    with lease_guarded(claim):
        CorpusFile.objects.filter(pk=file.pk).update(state=FileState.VALIDATING)
        Corpus.objects.filter(pk=file.corpus_id).update(is_unsettled=True)
    try:
        read_file(file, claim)
    except StaleLease:
        raise
    except DomainError as error:
        # Code and value: the sentence is made for whoever reads it, in their language.
        said = (error.code, error.detail) if isinstance(error, Unusable) else ("", error.message)
        with lease_guarded(claim):
            CorpusFile.objects.filter(pk=file.pk).update(
                state=FileState.FAILED,
                error_code=said[0],
                error=said[1][:400],
                counts={},
                train=None,
                held_out=None,
            )


def _join(corpus_id: int, claim: Claim) -> None:
    """Put the files' sides together and add up their counts; a change from now on makes it unsettled again."""
    with lease_guarded(claim):
        Corpus.objects.filter(pk=corpus_id).update(is_unsettled=False)
    files = list(CorpusFile.objects.filter(corpus_id=corpus_id, state=FileState.READY).order_by("id"))
    train = joined([file.train_id for file in files if file.train_id])
    held_out = joined([file.held_out_id for file in files if file.held_out_id])
    with lease_guarded(claim):
        Corpus.objects.filter(pk=corpus_id).update(
            train_id=train, held_out_id=held_out, counts=_summed([file.counts for file in files])
        )


def _summed(counts: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {
        key: sum(one[key] for one in counts)
        for key in ("rows", "refused", "duplicates", "characters", "train", "held_out")
    }
    by_domain: dict[str, dict[str, int]] = {}
    for one in counts:
        for code, sides in one["by_domain"].items():
            sums = by_domain.setdefault(code, {"train": 0, "held_out": 0})
            for side, number in sides.items():
                sums[side] += number
    # Files that were read before tokens were counted have none.
    tokens: Counter[str] = Counter()
    if all("about_tokens" in one for one in counts):
        for one in counts:
            tokens.update(one["about_tokens"])
    return {**total, "about_tokens": dict(tokens), "by_domain": dict(sorted(by_domain.items()))}


def _named(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 120:
        sentence = _("A corpus needs a name of 1 to 120 characters.")
        raise Invalid(sentence, fields={"name": sentence})
    return name
