# Worker with the demo model. Models from the hub go to /models.
FROM python:3.11-slim-bookworm AS dependencies
WORKDIR /build
RUN python -m venv /opt/img2img
COPY constraints.txt ./
# Index of torch: builds for CPUs, or https://download.pytorch.org/whl/cu130 and others for NVIDIA GPUs (docs/deployment.md).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Without dependencies: this index replaces PyPI, and does not have all versions that constraints.txt names.
RUN /opt/img2img/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY requirements/worker.txt requirements.txt
# Everything except torch and its CUDA libraries, whose versions depend on the build: these come last, from PyPI.
RUN awk '/^[a-z]/ {keep = !/^(torch|triton|nvidia-.*|cuda-.*)==/} keep' requirements.txt > others.txt \
    && /opt/img2img/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement others.txt \
    && /opt/img2img/bin/pip install --no-cache-dir --constraint constraints.txt torch \
    && /opt/img2img/bin/pip check

FROM dependencies AS code
COPY pyproject.toml setup.py README.md LICENSE ./
COPY img2img img2img
COPY worker worker
COPY demo_model demo_model
RUN /opt/img2img/bin/pip install --no-cache-dir --no-deps --target /code .

FROM python:3.11-slim-bookworm
# Mount points of volumes: a new volume gets their owner.
RUN useradd --system --uid 10001 --user-group --no-create-home img2img \
    && install --directory --owner img2img --group img2img /data /models /gpus \
    && install --directory --owner img2img --group img2img --mode 700 /run/secrets
COPY --from=dependencies /opt/img2img /opt/img2img
COPY docker/worker /usr/local/bin
COPY --from=code /code /opt/code
ENV PATH=/opt/img2img/bin:$PATH PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 HOME=/tmp HF_HOME=/models \
    IMG2IMG_DATA_DIR=/data IMG2IMG_LIVE_FILE=/tmp/worker-is-live \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility CUDA_DEVICE_ORDER=PCI_BUS_ID
WORKDIR /tmp
USER 10001:10001
CMD ["start-worker"]

# Last, because they change with every commit.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="img2img worker" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
