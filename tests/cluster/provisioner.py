"""Makes a hostPath volume for every claim of the default StorageClass; all nodes are one machine.

Run as `python -m cluster.provisioner KUBECONFIG FOLDER`.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from cluster.bounded import client_by
from kubernetes import client

PROVISIONER = "rlhf.dev/hostpath"
CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "standard",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": PROVISIONER,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}
PAUSE_SECONDS = 0.3


def main() -> None:
    """Look after claims until killed."""
    kubeconfig, folder = sys.argv[1:]
    api = client.CoreV1Api(client_by(Path(kubeconfig)))
    while True:
        provision(api, Path(folder))
        time.sleep(PAUSE_SECONDS)


def provision(api: client.CoreV1Api, folder: Path) -> None:
    """One round: a volume for each new claim, and none for those that are gone."""
    volumes = {volume.metadata.name: volume for volume in api.list_persistent_volume().items}
    for claim in api.list_persistent_volume_claim_for_all_namespaces().items:
        name = f"pvc-{claim.metadata.uid}"
        if claim.spec.storage_class_name == CLASS["metadata"]["name"] and name not in volumes:
            api.create_persistent_volume(_volume(name, claim, folder))
    for name, volume in volumes.items():
        if volume.status.phase == "Released" and volume.spec.storage_class_name == "standard":
            shutil.rmtree(folder / name, ignore_errors=True)
            api.delete_persistent_volume(name)


def _volume(name: str, claim: Any, folder: Path) -> dict[str, Any]:
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    # fsGroup does nothing to a hostPath; the images run as a user of their own.
    path.chmod(0o777)
    return {
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "accessModes": claim.spec.access_modes,
            "capacity": {"storage": claim.spec.resources.requests["storage"]},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim.metadata.name,
                "namespace": claim.metadata.namespace,
                "uid": claim.metadata.uid,
            },
            "hostPath": {"path": str(path)},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "standard",
        },
    }


if __name__ == "__main__":
    main()
