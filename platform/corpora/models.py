"""Corpora: uploaded logs, what was taken from them, and what was refused and why."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from accounts.models import TeamOwned
from corpora.encodings import NAMED
from corpora.reasons import file_reason
from registry.models import Artifact, Upload


class Corpus(TeamOwned):
    """Logs of several domains, validated, without repeats, split by hash into train and held-out."""

    name = models.CharField(_("name"), max_length=120)
    description = models.CharField(_("description"), max_length=400, blank=True)
    counts = models.JSONField(default=dict, blank=True)
    # True from a change of the files until both sides are put together anew.
    is_unsettled = models.BooleanField(default=False)
    train = models.ForeignKey(Artifact, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    held_out = models.ForeignKey(Artifact, on_delete=models.PROTECT, null=True, blank=True, related_name="+")

    class Meta:
        verbose_name = _("corpus")
        verbose_name_plural = _("corpora")
        constraints = [models.UniqueConstraint(fields=["team", "name"], name="one_corpus_name_per_team")]

    def __str__(self) -> str:
        return self.name


class FileState(models.TextChoices):
    """How far a file of a corpus is."""

    WAITING = "waiting", _("waiting")
    VALIDATING = "validating", _("being read")
    READY = "ready", _("read")
    FAILED = "failed", _("refused")


class CorpusFile(models.Model):
    """One uploaded file of a corpus with its own report."""

    corpus = models.ForeignKey(Corpus, on_delete=models.CASCADE, related_name="files")
    upload = models.ForeignKey(Upload, on_delete=models.PROTECT, related_name="+")
    default_domain = models.CharField(_("domain of rows that name none"), max_length=12, blank=True)
    state = models.CharField(max_length=12, choices=FileState.choices, default=FileState.WAITING)
    counts = models.JSONField(default=dict, blank=True)
    # Named by the uploader; empty: told from the file.
    encoding = models.CharField(_("encoding"), max_length=12, blank=True)
    # A code of `corpora.reasons`, with the value in question in `error`; without a code `error` is the whole sentence.
    error_code = models.CharField(max_length=40, blank=True)
    error = models.CharField(max_length=400, blank=True)
    train = models.ForeignKey(Artifact, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    held_out = models.ForeignKey(Artifact, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["corpus", "upload"], name="one_use_of_an_upload_per_corpus"),
            models.CheckConstraint(
                condition=models.Q(state__in=FileState.values), name="corpus_file_state_known"
            ),
        ]

    def __str__(self) -> str:
        return self.upload.name

    @property
    def problem(self) -> str:
        """Why nothing was taken, in the reader's language; "" when something was."""
        return file_reason(self.error_code, self.error) if self.error_code or self.error else ""

    @property
    def encoding_words(self) -> str:
        """The encoding that it was read in, by its name for people; "" before it was read."""
        name = str(self.counts.get("encoding", ""))
        return str(NAMED.get(name, name))

    @property
    def taken(self) -> int:
        """Rows that are in the corpus."""
        return int(self.counts.get("train", 0) + self.counts.get("held_out", 0))


class RowKey(models.Model):
    """The hash of one taken row: what makes a later row a repeat, in constant memory."""

    corpus = models.ForeignKey(Corpus, on_delete=models.CASCADE, related_name="+")
    file = models.ForeignKey(CorpusFile, on_delete=models.CASCADE, related_name="+")
    digest = models.BinaryField(max_length=16)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["corpus", "digest"], name="one_row_per_digest")]

    def __str__(self) -> str:
        return bytes(self.digest).hex()


class Refusal(models.Model):
    """One row that was not taken: its number in the file, why, and how it begins."""

    file = models.ForeignKey(CorpusFile, on_delete=models.CASCADE, related_name="refusals")
    row = models.PositiveBigIntegerField()
    code = models.CharField(max_length=24)
    detail = models.CharField(max_length=200, blank=True)
    excerpt = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["row", "id"]

    def __str__(self) -> str:
        return f"row {self.row}: {self.code}"
