"""A version's content never changes, whoever asks; its state, note and last check may."""

from __future__ import annotations

from django.db import migrations

GUARD = """
CREATE FUNCTION registry_version_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.id, NEW.model_id, NEW.number, NEW.spec, NEW.files, NEW.inspection, NEW.size_bytes, NEW.parent_id,
        NEW.lineage, NEW.report, NEW.created_at)
       IS DISTINCT FROM
       (OLD.id, OLD.model_id, OLD.number, OLD.spec, OLD.files, OLD.inspection, OLD.size_bytes, OLD.parent_id,
        OLD.lineage, OLD.report, OLD.created_at)
    THEN
        RAISE EXCEPTION 'model version % is immutable; make a new version', OLD.id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER version_immutable BEFORE UPDATE ON registry_modelversion
    FOR EACH ROW EXECUTE FUNCTION registry_version_immutable();
"""
UNGUARD = """
DROP TRIGGER version_immutable ON registry_modelversion;
DROP FUNCTION registry_version_immutable();
"""


class Migration(migrations.Migration):
    """Add the trigger."""

    dependencies = [("registry", "0001_initial")]
    operations = [migrations.RunSQL(GUARD, UNGUARD)]
