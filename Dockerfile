# The web page and JSON API of a saved model, for images and DICOM files, without torch.
#
#     docker build -t covid-fastai-serve .
#     docker run --read-only --tmpfs /tmp --cap-drop ALL -p 127.0.0.1:8000:8000 -v "$PWD/runs/first/model:/model:ro" covid-fastai-serve
#
# Allow other host names than localhost by arguments: docker run ... covid-fastai-serve --allow-host ward.example
#
# The versions of the Python packages are those of constraints.txt. The base image is the index of python:3.12-slim of
# 2026-09-07 (Python 3.12.14, Debian trixie). For a newer one, with later patches of its system:
#
#     docker buildx imagetools inspect python:3.12-slim --format '{{.Manifest.Digest}}'    # prints sha256:...
#     docker build --build-arg BASE=python:3.12-slim@sha256:... -t covid-fastai-serve .
ARG BASE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 ORT_DISABLE_TELEMETRY=1
COPY requirements-serve.txt constraints.txt /tmp/
RUN pip install -c /tmp/constraints.txt -r /tmp/requirements-serve.txt pydicom python-gdcm
COPY setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE /src/
COPY covid_fastai /src/covid_fastai
# pip would build it with whatever setuptools is the newest
RUN pip install -c /tmp/constraints.txt setuptools \
    && pip install --no-deps --no-build-isolation /src \
    && pip uninstall --yes setuptools \
    && rm -rf /src \
    && useradd --system --no-create-home --uid 10001 serve

USER 10001
EXPOSE 8000
# 60 seconds to start, since the model is first read and verified
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["covid-fastai", "serve", "/model", "--host", "0.0.0.0", "--allow-host", "localhost"]
