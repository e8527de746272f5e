# API server and webhook dispatcher: `img2img api`, `img2img webhooks`, `img2img keys`. No torch, no models.
# The release replaces the tag by the digest of the image at that time.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM $PYTHON_IMAGE AS dependencies
WORKDIR /build
RUN python -m venv /opt/img2img
COPY requirements/api.txt requirements.txt
RUN /opt/img2img/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.txt \
    && /opt/img2img/bin/pip check

FROM dependencies AS code
COPY pyproject.toml setup.py README.md LICENSE ./
COPY img2img img2img
COPY app app
RUN /opt/img2img/bin/pip install --no-cache-dir --no-deps --target /code .

FROM $PYTHON_IMAGE
# Mount points of volumes: a new volume gets their owner.
RUN useradd --system --uid 10001 --user-group --no-create-home img2img \
    && install --directory --owner img2img --group img2img --mode 700 /data \
    && install --directory --owner img2img --group img2img --mode 700 \
    /run/secrets /secrets/api /secrets/worker /secrets/webhooks \
    && install --directory --owner img2img --group img2img /secrets/redis
COPY --from=dependencies /opt/img2img /opt/img2img
COPY docker/redis /usr/local/share/img2img/redis
COPY --from=code /code /opt/code
ENV PATH=/opt/code/bin:/opt/img2img/bin:$PATH PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 IMG2IMG_DATA_DIR=/data
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
CMD ["img2img", "api"]

# Last, because they change with every commit.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="img2img api" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.base.name="$PYTHON_IMAGE"
