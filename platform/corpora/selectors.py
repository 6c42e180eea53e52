"""Look-ups of corpora, cut to one team."""

from __future__ import annotations

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import Conflict, NotFound
from common.uses import tells_presence
from corpora.models import Corpus, CorpusFile


def corpora_of(team: Team) -> QuerySet[Corpus]:
    """Return the team's corpora, newest first, with their files."""
    return Corpus.objects.filter(team=team).prefetch_related("files__upload").order_by("-id")


def corpus_get(team: Team, pk: int) -> Corpus:
    """Return one of the team's corpora or raise NotFound."""
    corpus = corpora_of(team).filter(pk=pk).first()
    if corpus is None:
        raise NotFound(_("There is no corpus number %(number)s here.") % {"number": pk})
    return corpus


def file_get(corpus: Corpus, pk: int) -> CorpusFile:
    """Return one file of a corpus or raise NotFound."""
    found = corpus.files.select_related("upload").filter(pk=pk).first()
    if found is None:
        raise NotFound(_("This corpus has no file number %(number)s.") % {"number": pk})
    return found


def training_files(corpus: Corpus) -> dict[str, str]:
    """Return the sha256 of the corpus' rows to train on and of those held out; raise Conflict while there are none."""
    if corpus.train_id is not None and corpus.held_out_id is not None:
        return {"train": corpus.train_id, "held_out": corpus.held_out_id}
    sentence = (
        _("The corpus %(name)s has no rows to train on yet; add a file of logs.")
        if corpus.train_id is None
        else _(
            "The corpus %(name)s has rows to train on, but none is held out to measure on; add more logs (about "
            "15 in a hundred rows are held out)."
        )
    ) % {"name": corpus.name}
    raise Conflict(sentence, fields={"corpus": sentence})


def is_present(team_id: int, pk: int) -> bool:
    """Return whether the team still has it."""
    return Corpus.objects.filter(team_id=team_id, pk=pk).exists()


tells_presence("corpus", is_present)
