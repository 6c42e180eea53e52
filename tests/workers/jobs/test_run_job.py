"""One job from claim to end, with a real child process."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db.models.functions import Now

from common.errors import StaleLease
from common.models import Lease
from jobs import execution, services
from jobs.models import Checkpoint, Job, JobEvent
from registry import store
from registry.models import ModelVersion
from workers import folders, run_job
from workers.relay import Relay

pytestmark = pytest.mark.django_db(transaction=True)


def chain(steps: int) -> str:
    value = ""
    for step in range(steps):
        value = hashlib.sha256(f"{value}{step}".encode()).hexdigest()
    return value


def weights(job: Job) -> str:
    return store.path_of(job.result_version.files["trunk.safetensors"]["sha256"]).read_text()


def end(job: Job) -> Job:
    return Job.objects.select_related("result_version__model").get(pk=job.pk)


def at_step(step: int, act, monkeypatch) -> None:
    """Do something while the child is at work: when the relay hears of a step."""
    original, done = Relay.hear, threading.Event()

    def hear(self, message) -> None:
        original(self, message)
        if message.kind == "step" and message.payload["step"] == step and not done.is_set():
            done.set()
            act(self)

    monkeypatch.setattr(Relay, "hear", hear)


def test_a_job_becomes_an_immutable_version_with_lineage(submit) -> None:
    job = submit("steps:4 say:hello")
    run_job.run(job.pk)
    done = end(job)
    assert (done.state, done.attempts, done.progress, done.error) == ("succeeded", 1, 1.0, "")
    assert done.result == {"steps": 4}
    version = done.result_version
    assert (version.number, version.model.name, version.lineage["job_id"]) == (1, job.name, job.pk)
    assert weights(done) == chain(4)
    assert Lease.objects.get(resource=job.resource).holder is None
    logged = JobEvent.objects.filter(job=job, kind="log").values_list("payload__text", flat=True)
    assert "hello" in list(logged)
    states = JobEvent.objects.filter(job=job, kind="state").values_list("payload__state", flat=True)
    assert list(states) == ["queued", "running", "succeeded"]


def test_a_second_import_of_the_same_name_is_the_next_version(submit) -> None:
    for number in (1, 2):
        job = submit("steps:2")
        run_job.run(job.pk)
        assert end(job).result_version.number == number


def test_nothing_is_left_in_the_work_folder(submit) -> None:
    job = submit("steps:2")
    run_job.run(job.pk)
    assert not list(folders.work_root().glob("*"))


def test_a_crash_goes_on_from_the_last_accepted_checkpoint_with_the_same_bytes(submit) -> None:
    job = submit("steps:7 die:5")
    run_job.run(job.pk)
    lost = end(job)
    assert (lost.state, lost.attempts) == ("queued", 1)
    assert "SIGKILL" in JobEvent.objects.filter(job=job, kind="state").last().payload["reason"]
    assert Checkpoint.objects.filter(job=job).first().step == 4
    # The second life is told to do the same steps, but not to die.
    Job.objects.filter(pk=job.pk).update(not_before=None, spec={**job.spec, "name": "steps:7"})
    run_job.run(job.pk)
    assert weights(end(job)) == chain(7)
    steps = JobEvent.objects.filter(job=job, kind="step").values_list("payload__step", flat=True)
    assert list(steps) == [1, 2, 3, 4, 5, 5, 6, 7]


def test_a_checkpoint_without_a_row_is_not_gone_on_from(submit) -> None:
    job = submit("steps:6 die:5")
    run_job.run(job.pk)
    Checkpoint.objects.filter(job=job, step=4).delete()
    Job.objects.filter(pk=job.pk).update(not_before=None, spec={**job.spec, "name": "steps:6"})
    run_job.run(job.pk)
    steps = JobEvent.objects.filter(job=job, kind="step").values_list("payload__step", flat=True)
    assert list(steps) == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert weights(end(job)) == chain(6)


def killed_before_its_child(job: Job) -> Path:
    """Claim the job as a worker does and lay out its checkpoints, then be gone: the lease runs out, nothing is said."""
    Job.objects.filter(pk=job.pk).update(not_before=None, state="queued")
    Lease.objects.filter(resource=job.resource).update(expires_at=Now() - timedelta(seconds=1))
    claim = execution.job_claim(job.pk, holder="b")
    assert claim is not None
    return folders.checkpoint_folder(claim)


def runs_to_its_end(job: Job, script: str) -> list[int]:
    Job.objects.filter(pk=job.pk).update(
        not_before=None, state="queued", attempts=1, spec={**job.spec, "name": script}
    )
    Lease.objects.filter(resource=job.resource).update(holder=None, expires_at=None)
    run_job.run(job.pk)
    epoch = Lease.objects.get(resource=job.resource).epoch
    steps = JobEvent.objects.filter(job=job, kind="step", epoch=epoch)
    return list(steps.values_list("payload__step", flat=True))


def test_killed_twice_without_a_checkpoint_between_it_still_goes_on_from_the_last_one(submit) -> None:
    job = submit("steps:7 die:5")
    run_job.run(job.pk)
    for _ in range(2):
        folder = killed_before_its_child(job)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-000002", "checkpoint-000004"]
        assert {Path(row.path).parent for row in Checkpoint.objects.filter(job=job)} == {folder}
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the older ones are gone"
    assert runs_to_its_end(job, "steps:7") == [5, 6, 7]
    assert weights(end(job)) == chain(7)


def test_killed_while_the_rows_follow_it_still_has_what_they_name(submit, monkeypatch) -> None:
    job = submit("steps:7 die:5")
    run_job.run(job.pk)

    def killed(_claim, _places) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(folders, "checkpoints_follow", killed)
        with pytest.raises(SystemExit):
            killed_before_its_child(job)
    assert runs_to_its_end(job, "steps:7") == [5, 6, 7]


def test_a_row_that_names_a_folder_that_is_gone_is_found_where_its_files_lie(submit) -> None:
    """As older releases left it: the files had moved on, the row had not."""
    job = submit("steps:7 die:5")
    run_job.run(job.pk)
    before = dict(Checkpoint.objects.filter(job=job).values_list("pk", "path"))
    killed_before_its_child(job)
    for number, path in before.items():
        Checkpoint.objects.filter(pk=number).update(path=path)
    assert runs_to_its_end(job, "steps:7") == [5, 6, 7]


def test_a_checkpoint_that_is_not_the_accepted_one_is_not_taken_for_it_nor_thrown_away(submit) -> None:
    job = submit("steps:7 die:5")
    run_job.run(job.pk)
    for row in Checkpoint.objects.filter(job=job):
        (Path(row.path) / "manifest.json").write_text('{"step": 6, "chain": "of another epoch"}')
    folder = killed_before_its_child(job)
    assert not list(folder.iterdir())
    assert len(list(folder.parent.glob("e1/checkpoint-*"))) == 2, "what could not be used is left to be looked at"
    assert runs_to_its_end(job, "steps:7") == [1, 2, 3, 4, 5, 6, 7]


def test_a_holder_that_lost_the_lease_leaves_the_folders_of_others_alone(submit) -> None:
    job = submit("steps:7 die:5")
    run_job.run(job.pk)
    Job.objects.filter(pk=job.pk).update(not_before=None)
    stale = execution.job_claim(job.pk, holder="b")
    folder = killed_before_its_child(job)
    with pytest.raises(StaleLease):
        folders.checkpoint_folder(stale)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-000002", "checkpoint-000004"]
    assert runs_to_its_end(job, "steps:7") == [5, 6, 7]


def test_an_error_that_would_come_again_ends_the_job(submit) -> None:
    job = submit("steps:4 fail:2 say:last-words")
    run_job.run(job.pk)
    failed = end(job)
    assert (failed.state, failed.error_code, failed.attempts) == ("failed", "non_finite_loss", 1)
    assert "step 2" in failed.error
    assert "last-words" in failed.log_tail
    assert not ModelVersion.objects.exists()


def test_garbage_on_the_pipe_is_shown_and_harms_nothing(submit) -> None:
    job = submit("steps:2 garbage:")
    run_job.run(job.pk)
    assert end(job).state == "succeeded"
    assert JobEvent.objects.filter(job=job, kind="log").count() == 3


def test_a_cancel_stops_the_child_within_a_step(submit, people, monkeypatch) -> None:
    job = submit("steps:100000 delay:0.02")
    at_step(3, lambda _relay: services.job_cancel(caller=people.owner, job_id=job.pk), monkeypatch)
    run_job.run(job.pk)
    assert end(job).state == "cancelled"
    assert not ModelVersion.objects.exists()


def test_a_pause_keeps_the_state_and_a_resume_goes_on_from_it(submit, people, monkeypatch) -> None:
    job = submit("steps:60 delay:0.02 unsaved:")
    at_step(3, lambda _relay: services.job_pause(caller=people.owner, job_id=job.pk), monkeypatch)
    run_job.run(job.pk)
    assert end(job).state == "paused"
    kept = Checkpoint.objects.get(job=job).step
    assert 3 <= kept < 60
    services.job_resume(caller=people.owner, job_id=job.pk)
    run_job.run(job.pk)
    assert weights(end(job)) == chain(60)
    steps = list(JobEvent.objects.filter(job=job, kind="step").values_list("payload__step", flat=True))
    assert steps == sorted(set(steps)), "no step was done twice"


def test_a_worker_that_is_told_to_stop_gives_its_job_back(submit, monkeypatch) -> None:
    job = submit("steps:60 delay:0.02")
    monkeypatch.setattr(run_job, "stopping", threading.Event())
    at_step(3, lambda relay: relay.keeper.stopping.set(), monkeypatch)
    run_job.run(job.pk)
    back = end(job)
    assert (back.state, back.attempts) == ("queued", 0)
    run_job.run(job.pk)
    assert end(job).state == "queued", "a worker that ends takes nothing new"
    run_job.stopping.clear()
    run_job.run(job.pk)
    assert weights(end(job)) == chain(60)


def test_a_worker_that_lost_its_lease_kills_its_child_and_writes_nothing(submit, monkeypatch) -> None:
    job = submit("steps:100000 delay:0.02")
    seen = {}

    def lose(relay: Relay) -> None:
        Lease.objects.filter(resource=job.resource).update(expires_at=Now() - timedelta(seconds=1))
        seen["pid"] = relay.keeper.child.process.pid
        seen["events"] = JobEvent.objects.filter(job=job).count()

    at_step(3, lose, monkeypatch)
    run_job.run(job.pk)
    assert JobEvent.objects.filter(job=job).count() == seen["events"]
    assert end(job).state == "running", "only the reconciler may say what becomes of it"
    assert not Path(f"/proc/{seen['pid']}").exists()


def test_a_damaged_input_is_refused_before_anything_runs(submit, people, tmp_path) -> None:
    from jobs.services import job_submit
    from tests.apps.jobs.fixtures import tune_request

    job = job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))
    path = store.path_of(job.inputs["corpus"]["train"])
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    run_job.run(job.pk)
    failed = end(job)
    assert failed.state == "failed"
    assert "sha256" in failed.error


def test_a_second_heavy_job_waits_for_the_machine(submit, people, tmp_path) -> None:
    from jobs.services import job_submit
    from tests.apps.jobs.fixtures import tune_request

    job = job_submit(caller=people.owner, kind="tune", spec=tune_request(people, tmp_path))
    with run_job.room_for("tune") as free:
        assert free
        run_job.run(job.pk)
    assert end(job).state == "queued"


def test_a_job_that_waited_for_room_is_rung_for_as_soon_as_there_is_some(submit, monkeypatch) -> None:
    first, second = submit("steps:2"), submit("steps:2")
    rung = []
    monkeypatch.setattr(run_job, "ring", rung.append)
    run_job.run(first.pk)
    assert rung == [second.pk]


def test_a_broker_that_does_not_answer_does_not_harm_a_job_that_is_done(submit, monkeypatch) -> None:
    from kombu.exceptions import OperationalError

    def silent(_job_id: int) -> None:
        raise OperationalError

    first, _second = submit("steps:2"), submit("steps:2")
    monkeypatch.setattr(run_job, "ring", silent)
    run_job.run(first.pk)
    assert end(first).state == "succeeded"


def test_a_disk_without_space_is_a_reason_not_a_riddle(submit, monkeypatch) -> None:
    job = submit("steps:2")

    def full(_directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "ingest", full)
    run_job.run(job.pk)
    failed = end(job)
    assert (failed.state, failed.error_code) == ("failed", "no_space")


def test_sweeping_keeps_what_somebody_may_still_want(submit, people) -> None:
    done, failed, queued = submit("steps:2"), submit("steps:4 fail:3"), submit("steps:2")
    for job in (done, failed):
        run_job.run(job.pk)
    root = folders.checkpoint_root()
    (root / str(queued.pk)).mkdir(parents=True)
    (root / "999999").mkdir()
    assert {int(path.name) for path in folders.sweep()} == {999999}
    Job.objects.filter(pk__in=[done.pk, failed.pk]).update(ended_at=Now() - timedelta(hours=2))
    assert {int(path.name) for path in folders.sweep()} <= {done.pk}
    Job.objects.filter(pk=failed.pk).update(ended_at=Now() - timedelta(days=8))
    assert failed.pk in {int(path.name) for path in folders.sweep()}
    assert {int(path.name) for path in root.iterdir()} == {queued.pk}
    assert not Checkpoint.objects.filter(job=failed).exists()


def test_the_child_is_told_everything_by_file(submit, monkeypatch) -> None:
    job = submit("steps:1")
    told = {}
    original = run_job.Child

    def spy(description, folder, **more):
        told.update(json.loads(json.dumps(description)))
        return original(description, folder, **more)

    monkeypatch.setattr(run_job, "Child", spy)
    run_job.run(job.pk)
    assert set(told) == {"kind", "spec", "inputs", "out_dir", "checkpoint_dir"}
    assert told["inputs"] == {"source": job.inputs["path"]}
    assert Path(told["checkpoint_dir"]).is_relative_to(settings.DATA_DIR)
