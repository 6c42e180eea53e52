"""The history of a deployment refuses to be changed, whoever asks."""

from __future__ import annotations

from django.db import migrations

GUARD = """
CREATE FUNCTION deployments_revision_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'deployment revisions are append-only; add a revision' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER revision_append_only BEFORE UPDATE ON deployments_deploymentrevision
    FOR EACH ROW EXECUTE FUNCTION deployments_revision_append_only();
"""
UNGUARD = """
DROP TRIGGER revision_append_only ON deployments_deploymentrevision;
DROP FUNCTION deployments_revision_append_only();
"""


class Migration(migrations.Migration):
    """Add the trigger."""

    dependencies = [("deployments", "0001_initial")]
    operations = [migrations.RunSQL(GUARD, UNGUARD)]
