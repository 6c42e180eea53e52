# The web image: pages, API, gateway and reconciler. No torch in it (tests/contracts checks what it installs).
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/turnout/venv && /opt/turnout/venv/bin/pip install uv==0.13.9
COPY requirements /src/requirements
RUN /opt/turnout/venv/bin/uv pip install --python /opt/turnout/venv/bin/python --compile-bytecode \
      -r /src/requirements/web.in -c /src/requirements/lock.txt

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home turnout \
 && install -d -o turnout -g turnout /data /run/turnout
COPY --from=build /opt/turnout/venv /opt/turnout/venv
WORKDIR /opt/turnout/app
COPY --chown=root:root manage.py pyproject.toml ./
COPY --chown=root:root platform platform
COPY --chown=root:root moe_core moe_core
COPY --chown=root:root templates templates
ENV PATH=/opt/turnout/venv/bin:$PATH \
    PYTHONPATH=/opt/turnout/app/platform:/opt/turnout/app \
    PYTHONUNBUFFERED=1 \
    DJANGO_SETTINGS_MODULE=config.settings.prod \
    TURNOUT_DATA_DIR=/data \
    TURNOUT_RUN_DIR=/run/turnout
RUN python -c "from standalone.build import compile_catalogs; compile_catalogs()"
USER turnout
EXPOSE 8000
CMD ["python", "-m", "standalone.web", "--bind", "0.0.0.0"]
