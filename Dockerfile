# The service and its workers; no torch, no training code, no MindQuantum and so no emulator. docs/deploy.md says how to
# run it. `python -m deploy.image` carries these steps out without Docker and checks what comes of them.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements/serve.txt requirements/serve.txt
RUN /venv/bin/pip install --no-cache-dir --no-compile --no-deps --require-hashes --requirement requirements/serve.txt
COPY pyproject.toml README.md ./
COPY models models
COPY service service
RUN /venv/bin/pip install --no-cache-dir --no-compile --no-deps --no-build-isolation .
# What only installs packages is not run; byte code is made here, as nothing can be written later.
RUN /venv/bin/pip uninstall --quiet --yes setuptools wheel pip \
    && /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /venv/lib \
    && mkdir /state

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="qd-students" \
      org.opencontainers.image.description="Language models distilled into 11-qubit quantum students, served over HTTP." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /venv /venv
COPY --from=build --chown=10001:10001 /state /state
# Outside a container the service listens on loopback; here it must be reached, so it does not start without a key in
# Redis, or QD_ALLOW_ANONYMOUS.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    QD_HOST=0.0.0.0 \
    QD_PORT=8000 \
    QD_STATE_DIR=/state \
    QD_WORKER_METRICS_HOST=0.0.0.0 \
    QD_WORKER_METRICS_PORT=9464
WORKDIR /state
USER 10001:10001
EXPOSE 8000 9464
STOPSIGNAL SIGTERM
# Of `serve`; whoever runs `worker` asks its port 9464 instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"QD_PORT\"]}/livez', timeout=4)"]
ENTRYPOINT ["qdserve"]
CMD ["serve"]
