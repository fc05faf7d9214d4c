"""What was written for a cluster, as text."""

from __future__ import annotations

from rest_deploy.serve.container import NOT_RUN, Written


def handed_over(written: Written) -> str:
    """What is in the folder and what to do with it."""
    lines = [
        f"{written.folder}: {written.engine} as {written.flavour}, image {written.image}",
        *(f"  {name}" for name in written.files),
        *NOT_RUN,
        "next: python -m build --wheel --outdir DIR PATH_OF_THE_REPOSITORY, then docker build, "
        f"docker push and kubectl apply -f {written.flavour}.yaml",
    ]
    return "\n".join(lines)
