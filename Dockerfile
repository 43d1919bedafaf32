# syntax=docker/dockerfile:1
# With a GPU:    docker build -t peftserve .
#                docker run --gpus all -p 8000:8000 -v peftserve:/state peftserve
# Without one:   docker build -t peftserve:cpu --build-arg TORCH_INDEX=URL .
#                docker run -p 8000:8000 -v peftserve:/state peftserve:cpu
# where URL is PyTorch's own index of CPU wheels, as its installation page gives it. pip's usual index has the wheels
# with CUDA, which bring CUDA's libraries with them: the host needs only the driver.
# Arguments after the image's name go to `peftserve serve`.
FROM python:3.12-slim

# Empty: pip's usual index, and so torch with CUDA.
ARG TORCH_INDEX=""

# Triton compiles its launchers with a C compiler at run time, and on a CPU the bypasses are compiled with a C++ one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--no-deps --index-url "${TORCH_INDEX}"} torch
COPY pyproject.toml README.md LICENSE __init__.py ./
COPY kernels kernels
COPY adapters adapters
COPY server server
RUN pip install --no-cache-dir -c constraints.txt . && rm -rf /src

RUN useradd --create-home --uid 1000 peftserve && install --directory --owner=peftserve /state
USER peftserve
WORKDIR /home/peftserve
VOLUME /state
EXPOSE 8000
ENV PEFTSERVE_HOST=0.0.0.0 PEFTSERVE_STATE_DIR=/state PYTHONUNBUFFERED=1

HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-m", "peftserve.server.cli.health"]

ENTRYPOINT ["peftserve", "serve"]
