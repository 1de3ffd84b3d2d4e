# Both images: `docker build --target trainer .`, and `docker build .` for the operator.
#
# The base image must have python3 (3.11 or newer) with venv, ca-certificates and useradd.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Pods name user and group by number, since the kubelet cannot tell that a name is not root.
RUN groupadd --gid 10001 rlhf \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/rlhf \
        --shell /usr/sbin/nologin rlhf
ENV PATH=/opt/rlhf/bin:$PATH \
    HOME=/home/rlhf \
    PYTHONUNBUFFERED=1 \
    # The root file system is read-only in a pod.
    PYTHONDONTWRITEBYTECODE=1

# What each extra needs, so that only a change of the needs installs them again.
FROM base AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN for extra in operator trainer; do \
        python3 -c "import tomllib; \
            project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
            print(*project['dependencies'], *project['optional-dependencies']['${extra}'], sep='\n')" \
            > "${extra}.txt"; \
    done

FROM base AS tools
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /build
COPY constraints.txt ./
# pip stays outside of /opt/rlhf, which goes into the images. The package itself comes in a layer of
# its own, behind a .pth file.
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --constraint constraints.txt hatchling editables \
    && python3 -m venv --without-pip /opt/rlhf \
    && echo /opt/rlhf/app \
        > "$(/opt/rlhf/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rlhf.pth"

FROM tools AS package
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY trainer trainer
RUN /opt/tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/tools/bin/pip --python /opt/rlhf/bin/python install \
        --no-cache-dir --no-deps --no-index --target /opt/rlhf/app /wheels/*.whl \
    && rm -rf /opt/rlhf/app/bin

FROM tools AS operator-dependencies
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
COPY --from=requirements /build/operator.txt ./
RUN /opt/tools/bin/pip --python /opt/rlhf/bin/python install \
        --no-cache-dir --constraint constraints.txt --requirement operator.txt

FROM tools AS trainer-dependencies
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
COPY --from=requirements /build/trainer.txt ./
# DeepSpeed comes as sources; its compiled kernels are not used.
RUN DS_BUILD_OPS=0 /opt/tools/bin/pip --python /opt/rlhf/bin/python install \
        --no-cache-dir --constraint constraints.txt --requirement trainer.txt

FROM base AS trainer
LABEL org.opencontainers.image.title="rlhf-operator trainer" \
      org.opencontainers.image.description="One stage of an RLHFJob on its ranks" \
      org.opencontainers.image.licenses="Apache-2.0"
# What libraries write beside the claims; a pod mounts writable folders at /tmp and the home.
ENV HF_HOME=/home/rlhf/.cache/huggingface \
    XDG_CACHE_HOME=/home/rlhf/.cache \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    MPLCONFIGDIR=/tmp/matplotlib
COPY --from=trainer-dependencies /opt/rlhf /opt/rlhf
COPY --from=package /opt/rlhf/app /opt/rlhf/app
WORKDIR /home/rlhf
USER 10001:10001
CMD ["python", "-m", "rlhf_trainer.launch", "/etc/rlhf/stage.json"]

# Last, so that a build without a target makes this one.
FROM base AS operator
LABEL org.opencontainers.image.title="rlhf-operator" \
      org.opencontainers.image.description="RLHF on Kubernetes as one kubectl apply" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=operator-dependencies /opt/rlhf /opt/rlhf
COPY --from=package /opt/rlhf/app /opt/rlhf/app
WORKDIR /home/rlhf
USER 10001:10001
EXPOSE 8080
CMD ["python", "-m", "rlhf_operator"]
