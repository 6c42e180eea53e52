"""Two teams may use one name: a deployment's name is unique in its team, no longer in the installation."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Exchange the constraint."""

    dependencies = [("deployments", "0003_live_frames")]
    operations = [
        migrations.RemoveConstraint(model_name="deployment", name="one_deployment_per_name"),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.UniqueConstraint(
                fields=("team", "name"),
                condition=models.Q(deleted_at=None),
                name="one_deployment_name_per_team",
            ),
        ),
    ]
