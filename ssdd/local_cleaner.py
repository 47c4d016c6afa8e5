"""What frees the workers' placement group of a training whose controller has died, on a local Ray.

Ray Train's own actor asks for the controller whichever Ray it finds on the machine: it waits for one that has ended,
and where another one lives, which knows of no such controller, it takes the workers of a sound training away.
"""

from typing import Any

import ray
from ray.train.v2._internal.callbacks import placement_group_callback  # there are no public names
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class LocalCleanerCallback(PlacementGroupCleanerCallback):
    """Of a training's controller, in whose process it starts a `LocalCleaner`."""

    def after_controller_start(self, train_run_context: Any) -> None:
        placement_group_callback.PlacementGroupCleaner = LocalCleaner  # type: ignore[misc]
        super().after_controller_start(train_run_context)


class LocalCleaner(PlacementGroupCleaner):
    """Ray's, but it asks the Ray that it belongs to."""

    def start_monitoring(self) -> bool:
        placement_group_cleaner.is_actor_alive = _is_alive  # in this process
        return super().start_monitoring()


def _is_alive(actor_id: str, timeout: float) -> bool:
    return ray._private.state.actors(actor_id).get("State") != "DEAD"
