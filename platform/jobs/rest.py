"""REST: submit jobs, follow them, steer them."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import READ_WRITE, TeamScoped
from common.closed import Closed, Words
from common.closed_requests import takes_no_body, takes_query
from common.query_values import one_of, whole_number
from jobs import services
from jobs.choices import JobKind, JobState
from jobs.events import event_face
from jobs.models import Job
from jobs.reasons import error_in_english
from jobs.selectors import events_after, jobs_of

MAX_EVENTS = 500


class JobIn(Closed):
    """What to do; the shape of `spec` follows from `kind` (docs: jobs.specs.ImportRequest, TuneRequest, OperateRequest).

    The `operation` of a job of kind `operate` is an OperationSpec, its `options` the other fields of OperateSpec; the
    `tune` of a job of kind `tune` has the fields of TuneSpec, but for layout and routing.
    """

    kind = serializers.ChoiceField(choices=JobKind.choices)
    name = Words(max_length=120, required=False, default="", allow_blank=True)
    spec = serializers.JSONField()


class JobOut(serializers.ModelSerializer):
    """A job as it stands."""

    url = serializers.SerializerMethodField()
    error = serializers.SerializerMethodField()
    result_version = serializers.IntegerField(source="result_version_id", allow_null=True, read_only=True)
    base_version = serializers.IntegerField(source="base_version_id", allow_null=True, read_only=True)
    cloned_from = serializers.IntegerField(source="cloned_from_id", allow_null=True, read_only=True)

    class Meta:
        model = Job
        fields = [
            "id", "url", "kind", "name", "state", "stage", "progress", "attempts", "error_code", "error", "last_seq",
            "base_version", "result_version", "cloned_from", "created_at", "started_at", "ended_at",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(OpenApiTypes.URI_REF)
    def get_url(self, job: Job) -> str:
        """Where this job is found."""
        return job_url(job)

    def get_error(self, job: Job) -> str:
        """Why it failed, in English."""
        return error_in_english(job.kind, job.error)


class JobDetail(JobOut):
    """A job with what was asked, what that meant, and what came of it."""

    spec = serializers.JSONField(read_only=True)
    inputs = serializers.JSONField(read_only=True)
    report = serializers.JSONField(source="result", read_only=True)

    class Meta(JobOut.Meta):
        fields = [*JobOut.Meta.fields, "spec", "inputs", "report"]
        read_only_fields = fields


class EventOut(serializers.Serializer):
    """Something that a job told."""

    seq = serializers.IntegerField()
    kind = serializers.CharField()
    payload = serializers.JSONField()
    at = serializers.DateTimeField()


class EventPage(serializers.Serializer):
    """Events in order, and the cursor of the next page."""

    events = EventOut(many=True)
    after = serializers.IntegerField(help_text="Pass it as `after` to go on from here.")
    state = serializers.CharField()


def job_url(job: Job) -> str:
    """The address of a job in the API."""
    return reverse("job-detail", args=[job.pk])


AFTER = OpenApiParameter("after", int, description="The last seq that was seen; 0 for all.")
LIMIT = OpenApiParameter("limit", int, description=f"At most {MAX_EVENTS}.")
STATE = OpenApiParameter("state", str, description="Only jobs in this state.", enum=JobState.values)
KIND = OpenApiParameter("kind", str, description="Only jobs of this kind.", enum=JobKind.values)


class JobViewSet(TeamScoped, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """The team's jobs."""

    grants = READ_WRITE
    queryset = Job.objects.select_related("base_version", "result_version").order_by("-id")
    lookup_value_regex = r"\d{1,18}"

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """Lists are short, single jobs whole."""
        return JobOut if self.action == "list" else JobDetail

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow a list to a state or a kind."""
        found = super().filter_queryset(queryset)
        if self.action != "list":
            return found
        state = one_of(self.request, "state", JobState.values)
        kind = one_of(self.request, "kind", JobKind.values)
        return found.filter(**({"state": state} if state else {}), **({"kind": kind} if kind else {}))

    @takes_query(STATE, KIND)
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List jobs, newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(request=JobIn, responses={202: JobDetail})
    def create(self, request: Request) -> Response:
        """Submit a job; the answer names the place to follow it."""
        wanted = JobIn(data=request.data)
        wanted.is_valid(raise_exception=True)
        return _accepted(services.job_submit(caller=self.caller, **wanted.validated_data))

    @takes_no_body(responses={202: JobDetail})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop a job for good."""
        return _accepted(services.job_cancel(caller=self.caller, job_id=int(pk)))

    @takes_no_body(responses={202: JobDetail})
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Halt a job."""
        return _accepted(services.job_pause(caller=self.caller, job_id=int(pk)))

    @takes_no_body(responses={202: JobDetail})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on with a paused job."""
        return _accepted(services.job_resume(caller=self.caller, job_id=int(pk)))

    @takes_no_body(responses={202: JobDetail})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Try a job again that ended without a result."""
        return _accepted(services.job_retry(caller=self.caller, job_id=int(pk)))

    @takes_no_body(responses={202: JobDetail})
    @action(detail=True, methods=["post"])
    def clone(self, request: Request, pk: str) -> Response:
        """Submit the same specification as a new job."""
        return _accepted(services.job_clone(caller=self.caller, job_id=int(pk)))

    @takes_query(AFTER, LIMIT)
    @extend_schema(responses=EventPage, filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def events(self, request: Request, pk: str) -> Response:
        """What the job told after a certain event, oldest first."""
        job = self.get_object()
        after = whole_number(request, "after", default=0, high=2**31 - 1)
        limit = whole_number(request, "limit", default=MAX_EVENTS, low=1, high=MAX_EVENTS)
        rows = [event_face(event) for event in events_after(job, after)[:limit]]
        last = rows[-1]["seq"] if rows else after
        return Response({"events": rows, "after": last, "state": job.state})

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["get"])
    def report(self, request: Request, pk: str) -> Response:
        """What came of the job: for a tuning run the figures before, after and of the control."""
        return Response(self.get_object().result)


def _accepted(job: Job) -> Response:
    fresh = jobs_of(job.team).get(pk=job.pk)
    return Response(
        JobDetail(fresh).data, status=status.HTTP_202_ACCEPTED, headers={"Location": job_url(job)}
    )
