# The scripts and tools with the tested versions of all packages (constraints.txt). The commands are in docs/deploy.md.
#
#     BASE      an image with Python 3.11 or newer and its venv module. GPUs need no CUDA image: torch's packages bring CUDA,
#               the NVIDIA Container Toolkit brings the driver.
#     PIP_ARGS  as in the Makefile: the index of PyTorch's CPU builds, for an image without CUDA
#     COMMIT    commit of the code, which runs record among their versions
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# A virtual environment, because pip refuses to change the system's Python where a distribution manages it.
ENV PATH=/opt/rep3d/bin:${PATH}
WORKDIR /rep3d

# Packages change less often than code: their layer is taken from the cache.
ARG PIP_ARGS=""
COPY constraints.txt requirements.txt requirements-optional.txt ./
RUN python3 -m venv /opt/rep3d \
    && pip install --no-cache-dir ${PIP_ARGS} -c constraints.txt -r requirements.txt \
    && pip install --no-cache-dir ${PIP_ARGS} --no-deps -r requirements-optional.txt

# A clone may be readable for its owner only.
COPY . .
RUN chmod -R a+rX .

# HOME and USER for any user id, also one without an entry in /etc/passwd (docker run --user): Matplotlib and torch.compile keep
# caches there. NVIDIA's variables show GPUs also where the container is not started with --gpus, as by Docker Compose.
ARG COMMIT=unknown
ENV HOME=/tmp USER=rep3d PYTHONUNBUFFERED=1 REP3D_COMMIT=${COMMIT} \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
ENTRYPOINT ["python"]
CMD ["main_train.py", "--help"]
