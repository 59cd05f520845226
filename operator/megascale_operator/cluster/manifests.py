"""The manifests in deploy/ and operator/crds, rendered by kustomize."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from megascale.errors import InputError
from megascale_operator.cluster.kubectl import Kubectl

_NO_ENV: Final[Mapping[str, str]] = MappingProxyType({})
NAMESPACE: Final = "megascale-system"
OPERATOR: Final = "megascale-operator"
CRDS: Final = ("trainingjobs.megascale.io", "nodechecks.megascale.io")
COMPONENTS: Final = {"Observe": None, "Annotate": "annotate", "Enforce": "enforce"}
_CHECKOUT: Final = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Manifests:
    """The manifests of a checkout of MegaScale, or of a copy of its folders deploy and operator/crds."""

    source: Path

    @classmethod
    def find(cls, source: Path | None) -> Manifests:
        """Return the manifests in `source`, by default in the checkout that this program runs from.

        Raises:
            InputError: the folder has no manifests.
        """
        folder = source or _CHECKOUT
        missing = [part for part in ("deploy/base", "operator/crds") if not (folder / part).is_dir()]
        if missing:
            raise InputError(
                f"{folder} has no {' and no '.join(missing)}: give --source with a checkout of MegaScale"
            )
        return cls(folder.resolve())

    @property
    def crds(self) -> Path:
        """Folder of the CRDs."""
        return self.source / "operator" / "crds"

    @property
    def overlays(self) -> list[str]:
        """Names of the overlays."""
        return sorted(path.name for path in (self.source / "deploy" / "overlays").iterdir() if path.is_dir())

    def rendered(
        self, kubectl: Kubectl, overlay: str, mode: str, image: str | None, env: Mapping[str, str] = _NO_ENV
    ) -> str:
        """Return the objects of an overlay as YAML.

        Args:
            overlay: a folder of deploy/overlays.
            mode: Observe, Annotate or Enforce.
            image: image of operator and jobs; None keeps the overlay's.
            env: environment variables to set in the operator's container; "" keeps the overlay's value.

        Raises:
            InputError: there is no such overlay.
        """
        if overlay not in self.overlays:
            raise InputError(f"--overlay {overlay}: expected one of {', '.join(self.overlays)}")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder).resolve()
            deploy = os.path.relpath(self.source / "deploy", target)
            text = _kustomization(deploy, overlay, COMPONENTS[mode], image, env)
            (target / "kustomization.yaml").write_text(text)
            return kubectl.run("kustomize", str(target))


def _kustomization(
    deploy: str, overlay: str, component: str | None, image: str | None, env: Mapping[str, str]
) -> str:
    lines = [
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        f"resources: [{deploy}/overlays/{overlay}]",
    ]
    if component:
        lines.append(f"components: [{deploy}/components/{component}]")
    variables = [{"name": name, "value": value} for name, value in env.items() if value]
    if variables:
        pod = {"containers": [{"name": "operator", "env": variables}]}
        patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": OPERATOR}}
        # A JSON string is a valid YAML string.
        lines += [
            "patches:",
            f"- patch: {json.dumps(json.dumps(patch | {'spec': {'template': {'spec': pod}}}))}",
        ]
    if image:
        name, _, tag = _split(image)
        operator = "spec.template.spec.containers.[name=operator]"
        here = f"kind: Deployment, name: {OPERATOR}"
        lines += [
            "images:",
            f"- {{name: megascale, newName: {name}{f', {tag}' if tag else ''}}}",
            "replacements:",
            f"- source: {{{here}, fieldPath: '{operator}.image'}}",
            f"  targets: [{{select: {{{here}}}, fieldPaths: ['{operator}.env.[name=IMAGE].value']}}]",
        ]
    return "\n".join(lines) + "\n"


def _split(image: str) -> tuple[str, str, str]:
    """Split an image reference into name, full reference, and kustomize's field for its tag or digest."""
    name, at, digest = image.partition("@")
    if at:
        return name, image, f"digest: '{digest}'"
    head, colon, tag = image.rpartition(":")
    if colon and "/" not in tag:
        return head, image, f"newTag: '{tag}'"
    return image, image, ""
