"""Files that nobody has read yet: large ones, and those whose reader was killed."""

from __future__ import annotations

from django.db.models import Q

from common.loops import loop
from corpora.models import Corpus, FileState
from corpora.services import corpus_settle

UNREAD = Q(files__state__in=[FileState.WAITING, FileState.VALIDATING])


@loop("corpora", every_s=5)
def settle_waiting() -> None:
    """Settle every corpus with unread files or a change; a corpus that somebody settles now is left alone."""
    for corpus_id in Corpus.objects.filter(UNREAD | Q(is_unsettled=True)).values_list("pk", flat=True).distinct():
        corpus_settle(corpus_id)
