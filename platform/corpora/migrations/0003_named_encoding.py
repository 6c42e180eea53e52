from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('corpora', '0002_unsettled'),
    ]

    operations = [
        migrations.AddField(
            model_name='corpusfile',
            name='encoding',
            field=models.CharField(blank=True, max_length=12, verbose_name='encoding'),
        ),
        migrations.AddField(
            model_name='corpusfile',
            name='error_code',
            field=models.CharField(blank=True, max_length=40),
        ),
    ]
