"""Pages: corpora, one corpus with its files and rows, what was refused."""

from __future__ import annotations

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import Role, role_required
from accounts.caller import Caller
from common.errors import Conflict, Invalid, NotFound
from corpora import describe, services
from corpora.encodings import NAMED
from corpora.exports import refusals_csv
from corpora.forms import CorpusForm, FileForm
from corpora.intake import MAX_REFUSALS_KEPT, preview_rows
from corpora.models import Corpus, FileState
from corpora.reasons import reason
from corpora.selectors import corpora_of, corpus_get, file_get, training_files
from registry import store
from registry.downloads import attachment

MAX_SHOWN = 200
ROWS_PER_PAGE = 8
MAX_PAGE = 2000
SIDES = ("train", "held_out")


def caller_of(request: HttpRequest) -> Caller:
    """Return who calls; the access rule has made sure that somebody does."""
    return request.caller  # type: ignore[attr-defined,no-any-return]


@role_required(Role.VIEWER)
@require_http_methods(["GET", "POST"])
def corpus_list(request: HttpRequest) -> HttpResponse:
    """Every corpus of the team; a POST makes one."""
    caller = caller_of(request)
    form = CorpusForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = services.corpus_create(caller=caller, **form.cleaned_data)
        except (Invalid, Conflict) as error:
            form.add_error("name", error.message)
        else:
            return redirect("corpora:detail", made.pk)
    corpora = list(corpora_of(caller.team)[:MAX_SHOWN])
    context = {
        "rows": [
            (corpus, describe.corpus_verdict(corpus), describe.domain_rows(corpus)) for corpus in corpora
        ],
        "verdict": describe.list_verdict(corpora),
        "form": form,
        "can_write": caller.role.covers(Role.EDITOR),
    }
    return render(request, "corpora/list.html", context, status=422 if form.errors else 200)


@role_required(Role.VIEWER)
@require_GET
def corpus_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One corpus: what came of each file, counts by domain, some rows."""
    caller = caller_of(request)
    corpus = corpus_get(caller.team, pk)
    files = list(corpus.files.all())
    context = {
        "corpus": corpus,
        "counts": corpus.counts,
        "note": describe.note(corpus),
        "files": [(file, describe.refusal_groups(file)) for file in files],
        "verdict": describe.corpus_verdict(corpus),
        "domains": describe.domain_rows(corpus),
        "is_busy": any(file.state in (FileState.WAITING, FileState.VALIDATING) for file in files),
        "known_domains": describe.known_domains(caller.team).values(),
        "file_form": FileForm(),
        "encodings": NAMED.items(),
        "can_write": caller.role.covers(Role.EDITOR),
        **_rows(request, corpus),
    }
    return render(request, "corpora/detail.html", context)


@role_required(Role.VIEWER)
@require_GET
def corpus_rows(request: HttpRequest, pk: int) -> HttpResponse:
    """The rows alone, for turning pages in place."""
    corpus = corpus_get(caller_of(request).team, pk)
    context = {"corpus": corpus, "domains": describe.domain_rows(corpus), **_rows(request, corpus)}
    return render(request, "corpora/rows.html", context)


@role_required(Role.EDITOR)
@require_POST
def corpus_samples(request: HttpRequest) -> HttpResponse:
    """Make a corpus out of the sample logs."""
    corpus = services.corpus_from_samples(caller=caller_of(request))
    messages.success(request, _("The sample logs are read: real texts in several domains."))
    return redirect("corpora:detail", corpus.pk)


@role_required(Role.EDITOR)
@require_POST
def corpus_delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Remove a corpus."""
    services.corpus_delete(caller=caller_of(request), corpus_id=pk)
    messages.success(request, _("The corpus is removed; runs that used it keep their rows."))
    return redirect("corpora:list")


@role_required(Role.EDITOR)
@require_POST
def file_upload(request: HttpRequest, pk: int) -> HttpResponse:
    """Take a file of logs and read it."""
    form = FileForm(request.POST, request.FILES)
    if not form.is_valid():
        raise Invalid(" ".join(str(error) for errors in form.errors.values() for error in errors))
    sent = form.cleaned_data["file"]
    file = services.file_add(
        caller=caller_of(request), corpus_id=pk, name=sent.name, source=sent.file, expected_bytes=sent.size,
        default_domain=form.cleaned_data["default_domain"], encoding=form.cleaned_data["encoding"],
    )  # fmt: skip
    if file.state == FileState.FAILED:
        messages.error(request, file.problem)
    else:
        messages.success(request, _("%(name)s is in.") % {"name": sent.name})
    return redirect("corpora:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def file_domain(request: HttpRequest, pk: int, file_id: int) -> HttpResponse:
    """Set the domain of rows that name none, or the encoding of the file."""
    changes = {name: request.POST[name] for name in ("default_domain", "encoding") if name in request.POST}
    file = services.file_edit(caller=caller_of(request), corpus_id=pk, file_id=file_id, **changes)
    if file.state == FileState.FAILED:
        messages.error(request, file.problem)
    else:
        messages.success(request, _("The file was read again."))
    return redirect("corpora:detail", pk)


@role_required(Role.EDITOR)
@require_POST
def file_remove(request: HttpRequest, pk: int, file_id: int) -> HttpResponse:
    """Take a file out of the corpus."""
    services.file_remove(caller=caller_of(request), corpus_id=pk, file_id=file_id)
    messages.success(request, _("The file is out of the corpus."))
    return redirect("corpora:detail", pk)


@role_required(Role.VIEWER)
@require_GET
def refusals(request: HttpRequest, pk: int, file_id: int) -> HttpResponse:
    """Every refused row of a file, with its number, the reason and how it begins."""
    corpus = corpus_get(caller_of(request).team, pk)
    file = file_get(corpus, file_id)
    page = Paginator(file.refusals.all(), 50).get_page(request.GET.get("page"))
    context = {
        "corpus": corpus,
        "file": file,
        "page": page,
        "rows": [(refusal, reason(refusal.code, refusal.detail)) for refusal in page],
        "groups": describe.refusal_groups(file),
        "kept": MAX_REFUSALS_KEPT,
    }
    return render(request, "corpora/refusals.html", context)


@role_required(Role.VIEWER)
@require_GET
def refusals_download(request: HttpRequest, pk: int, file_id: int) -> StreamingHttpResponse:
    """The refused rows of a file as CSV."""
    return refusals_csv(file_get(corpus_get(caller_of(request).team, pk), file_id))


@role_required(Role.VIEWER)
@require_GET
def corpus_download(request: HttpRequest, pk: int, side: str) -> FileResponse:
    """One side of the split as JSON Lines."""
    if side not in SIDES:
        raise NotFound(_("A corpus has the sides train and held_out."))
    corpus = corpus_get(caller_of(request).team, pk)
    return attachment(store.path_of(training_files(corpus)[side]), f"corpus-{corpus.pk}-{side}.jsonl")


def _rows(request: HttpRequest, corpus: Corpus) -> dict[str, object]:
    """Some rows of the side and domain that the address names."""
    side = request.GET.get("side") if request.GET.get("side") in SIDES else "train"
    domain = request.GET.get("domain", "*")[:12]
    text = request.GET.get("page", "1")
    page = min(MAX_PAGE, int(text)) if text.isdigit() and 0 < len(text) < 6 and int(text) else 1
    sha256 = getattr(corpus, f"{side}_id")
    found = []
    if sha256:
        found = preview_rows(
            sha256,
            domain=None if domain == "*" else domain,
            offset=(page - 1) * ROWS_PER_PAGE,
            limit=ROWS_PER_PAGE + 1,
        )
    known = {row["code"]: row for row in describe.domain_rows(corpus)}
    rows = [(row, known.get(row["domain"] or "", {})) for row in found[:ROWS_PER_PAGE]]
    return {
        "side": side, "domain": domain, "page_number": page, "shown_rows": rows,
        "has_more": len(found) > ROWS_PER_PAGE, "first_row": (page - 1) * ROWS_PER_PAGE + 1,
    }  # fmt: skip
