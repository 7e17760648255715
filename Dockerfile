# The command line of exmap.
#
#   docker build --tag exmap .                                                       CPU and NVIDIA GPUs (on x86-64)
#   docker build --tag exmap:cpu --build-arg TORCH_INDEX=ADDRESS .                   CPU alone, several GB smaller
#   docker run --rm --volume "$PWD:/data" --user "$(id -u)" exmap run digits --out runs/demo
#   docker run --rm --gpus all --shm-size 2g --volume "$PWD:/data" --user "$(id -u)" exmap audit --model ...
#
# PyTorch's wheels for Linux on x86-64 hold the CUDA libraries, so a GPU needs no other image, only the driver and the
# NVIDIA container toolkit on the host. ADDRESS is the index of CPU wheels that PyTorch's page "Get started" names.

FROM python:3.12-slim-bookworm AS build
WORKDIR /source
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m build --wheel --outdir /dist

FROM python:3.12-slim-bookworm
ARG TORCH_INDEX=""
ARG EXTRAS="[timm,transformers,huggingface,onnx]"
COPY constraints.txt /tmp/
# The CPU wheels go first, because their versions (2.9.0+cpu) satisfy the constraints of the plain ones.
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint /tmp/constraints.txt torch torchvision; \
    fi
COPY --from=build /dist /tmp/dist
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "exmap$EXTRAS @ file://$(echo /tmp/dist/*.whl)" \
    && rm -r /tmp/dist /tmp/constraints.txt \
    && useradd --create-home --uid 1000 exmap
USER 1000
WORKDIR /data
# Of the container toolkit, where the host gives GPUs by default.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["exmap"]
CMD ["--help"]
