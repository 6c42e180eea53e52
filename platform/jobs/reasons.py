"""Why a job failed, with the stage by its title: in the reader's language, and for programs in English, as it is kept."""

from __future__ import annotations

from django.utils.translation import override

from common.told import told
from jobs.stages import titles_of
from moe_core.sentences import CORE


def error_told(kind: str, error: str) -> str:
    """What a job of a kind ended with, in the reader's language; "" for nothing."""
    return told(error, {"stage": titles_of(kind)})


def error_in_english(kind: str, error: str) -> str:
    """What a job of a kind ended with, in the words in which it was said."""
    with override("en"):
        titles = {key: f"“{title}”" for key, title in titles_of(kind).items()}
    return CORE.renamed(error, {"stage": titles})
