# docker build -t backbone-conformance . && docker run --rm -v "$PWD:/work" backbone-conformance certify mine.py:MyBackbone --id my-7b
# A class that needs more than transformers: an image of your own, FROM this one, with `RUN pip install ...`.
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint /tmp/constraints.txt /tmp/wheel/*.whl \
    && rm -r /tmp/wheel
# Checkpoints are built when first asked for; a volume here keeps them: -v conformance-hub:/hub
ENV CONFORMANCE_HUB=/hub HF_HUB_OFFLINE=1
RUN useradd --create-home --uid 1000 conformance && mkdir /hub /work && chown conformance /hub /work
USER 1000
WORKDIR /work
ENTRYPOINT ["conformance"]
CMD ["--help"]
