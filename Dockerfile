# The web page and JSON API of a saved model, without torch.
#
#     docker build -t covid-fastai-serve .
#     docker run --read-only --tmpfs /tmp --cap-drop ALL -p 127.0.0.1:8000:8000 -v "$PWD/runs/first/model:/model:ro" covid-fastai-serve
#
# Allow other host names than localhost by arguments: docker run ... covid-fastai-serve --allow-host ward.example
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 ORT_DISABLE_TELEMETRY=1
COPY requirements-serve.txt /tmp/
RUN pip install -r /tmp/requirements-serve.txt
COPY setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE /src/
COPY covid_fastai /src/covid_fastai
RUN pip install --no-deps /src && rm -rf /src && useradd --system --no-create-home --uid 10001 serve

USER 10001
EXPOSE 8000
# 60 seconds to start, since the model is first read and verified
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["covid-fastai", "serve", "/model", "--host", "0.0.0.0", "--allow-host", "localhost"]
