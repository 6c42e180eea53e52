# The worker image: Celery worker, training and engine children. CPU by default; for NVIDIA GPUs build with
#   --build-arg TORCH_INDEX=   (empty: the default index, whose build brings CUDA)
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/turnout/venv && /opt/turnout/venv/bin/pip install uv==0.13.9
COPY requirements /src/requirements
RUN /opt/turnout/venv/bin/uv pip install --python /opt/turnout/venv/bin/python --compile-bytecode \
      ${TORCH_INDEX:+--index "$TORCH_INDEX" --index-strategy unsafe-best-match} \
      -r /src/requirements/web.in -r /src/requirements/compute.in -c /src/requirements/lock.txt \
 && /opt/turnout/venv/bin/uv pip install --python /opt/turnout/venv/bin/python --no-deps -r /src/requirements/model.in
# One library for every processor of the architecture, kept inside the virtual environment.
COPY moe_core /src/moe_core
RUN cd /src && /opt/turnout/venv/bin/python -m moe_core.kernels.cpu.build

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home turnout \
 && install -d -o turnout -g turnout /data /run/turnout
COPY --from=build /opt/turnout/venv /opt/turnout/venv
WORKDIR /opt/turnout/app
COPY --chown=root:root manage.py pyproject.toml ./
COPY --chown=root:root platform platform
COPY --chown=root:root moe_core moe_core
COPY --chown=root:root workers workers
COPY --chown=root:root templates templates
ENV PATH=/opt/turnout/venv/bin:$PATH \
    PYTHONPATH=/opt/turnout/app/platform:/opt/turnout/app \
    PYTHONUNBUFFERED=1 \
    DJANGO_SETTINGS_MODULE=config.settings.prod \
    TURNOUT_DATA_DIR=/data \
    TURNOUT_RUN_DIR=/run/turnout
RUN python -c "from standalone.build import compile_catalogs; compile_catalogs()"
USER turnout
CMD ["celery", "-A", "workers.app", "worker", "--pool", "threads", "--concurrency", "4", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
