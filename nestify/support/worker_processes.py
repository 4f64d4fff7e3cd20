"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["end_with_parent"]


def end_with_parent(parent: int) -> None:
    """End this process soon after ``parent`` has, however that ended (also by ``kill -9``)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
