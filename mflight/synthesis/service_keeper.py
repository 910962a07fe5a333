"""A thread that lives as long as a run and looks after its generators, whatever the training does."""

import threading
from collections.abc import Callable

from mflight.synthesis.ray.service import RaySynthesisService
from mflight.synthesis.service import ServiceReport, SynthesisService


class ServiceKeeper:
    """Starts a service, polls it from time to time and stops it, all in one thread of its own.

    On Linux generators die with the thread that started them. And a rank that waits for another one in a
    collective could not start a dead generator again, for whose samples that other rank waits.

    Args:
        service: not started yet.
        poll_s: time between two looks at the generators, in seconds.
        on_report: called in that thread with each report.
    """

    def __init__(
        self,
        service: SynthesisService | RaySynthesisService,
        poll_s: float,
        on_report: Callable[[ServiceReport], None],
    ):
        self._service, self._poll_s, self._on_report = service, poll_s, on_report
        self._is_started, self._is_told_to_stop = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="mflight-generators", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread still looks after the service."""
        return self._thread.is_alive() and self._error is None

    def start(self) -> None:
        """Start the service; an error of its settings is raised here."""
        self._thread.start()
        self._is_started.wait()
        self._raise_error()

    def stop(self) -> None:
        """Poll a last time, and stop the service; an error of the service is raised here."""
        self._is_told_to_stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._raise_error()

    def _keep(self) -> None:
        try:
            with self._service as service:
                self._on_report(service.poll())
                self._is_started.set()
                while not self._is_told_to_stop.wait(self._poll_s):
                    self._on_report(service.poll())
                self._on_report(service.poll())
            self._on_report(service.poll())  # what was drawn until now counts
        except BaseException as error:
            self._error = error
        finally:
            self._is_started.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
