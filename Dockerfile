# The service alone: no torch, no training code.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements/serve.txt requirements/serve.txt
RUN /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/serve.txt
COPY pyproject.toml README.md ./
COPY models models
COPY service service
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN useradd --system --uid 10001 qd && install -d -o qd /state
COPY --from=build /venv /venv
USER qd
ENV PATH=/venv/bin:$PATH QD_HOST=0.0.0.0 QD_STATE_DIR=/state
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez')"]
ENTRYPOINT ["qdserve"]
CMD ["serve"]
