"""Sees what the detector says of its regions while it trains, without a forward pass of its own."""

import lightning as L

from mflight.detection.heads import InstanceHeads, Watcher


class HeadsWatcher(L.Callback):
    """Base of callbacks that look at the class scores of training; it leaves the detector as it was.

    A module without ``InstanceHeads`` has nothing to see.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[InstanceHeads, Watcher]] = []

    @property
    def is_watching(self) -> bool:
        """Whether there is anything to see."""
        return bool(self._watched)

    def watch(self, module: L.LightningModule, watcher: Watcher) -> None:
        """Let ``watcher`` see each training step of the module's heads, until training ends.

        Args:
            module: whose heads are watched.
            watcher: called as :class:`InstanceHeads` tells.
        """
        for part in module.modules():
            if isinstance(part, InstanceHeads):
                part.watchers.append(watcher)
                self._watched.append((part, watcher))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop watching."""
        for heads, watcher in self._watched:
            heads.watchers.remove(watcher)
        self._watched = []

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching."""
        self.on_train_end(trainer, pl_module)
