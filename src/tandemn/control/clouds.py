"""The clouds that jobs can run on: SkyPilot behind one launcher each, and what they share."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn import settings as environment
from tandemn.fleet.launchers.skypilot import SkyPilotLauncher, keep_log
from tandemn.fleet.launchers.skypilot_watch import Watch
from tandemn.fleet.launchers.tunnels import Tunnels
from tandemn.placement.catalog.skypilot import CATALOGS, load_offers
from tandemn.skypilot.clouds import CLOUDS, enabled_clouds
from tandemn.skypilot.environment import SkyPilot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.settings import Settings

#: The cheapest of those that let us in.
ANY = "any"
#: How long SkyPilot's word on which clouds let it in is taken for true, in seconds.
ENABLED_S = 300.0


class Clouds:
    """Opened once; nothing of SkyPilot runs before something is launched with it.

    Args:
        settings: of the control plane.
        server_url: where replicas call back.
        on_change: called, in a thread, when a cluster came up or went.
    """

    def __init__(self, settings: Settings, *, server_url: str, on_change: Callable[[], None]) -> None:
        home = settings.home_path
        logs = home / "logs"
        self.sky = SkyPilot(settings.skypilot_python, logs / "skypilot.log")
        self._lock = threading.Lock()
        self._enabled: list[str] = []
        self._asked_at = -ENABLED_S
        self.catalogs = Catalogs(self.sky.home / CATALOGS)
        self._watch = Watch(
            self.sky,
            Tunnels(self.sky, logs / "tunnels.log"),
            server_url,
            keep_log=lambda cluster: keep_log(self.sky, home, cluster),
            on_change=on_change,
            clusters_s=settings.cloud_look_s,
        )
        token = environment.hf_token()
        secrets = {} if token is None else {"HF_TOKEN": token.get_secret_value()}
        self.launchers: Mapping[str, SkyPilotLauncher] = {
            name: SkyPilotLauncher(
                self.sky,
                self._watch,
                cloud=None if name == ANY else name,
                home=home,
                offers=partial(self.offers, name),
                secrets=secrets,
                image=settings.skypilot_image,
            )
            for name in (*CLOUDS, ANY)
        }

    def enabled(self) -> list[str]:
        """Name the clouds that let SkyPilot in, as it last checked; asked again after some minutes.

        Raises:
            MissingDependency: SkyPilot is not installed.
        """
        with self._lock:
            if time.monotonic() - self._asked_at > ENABLED_S:
                self._enabled = enabled_clouds(self.sky)
                self._asked_at = time.monotonic()
            return list(self._enabled)

    def offers(self, cloud: str | None = None) -> Sequence[Offer]:
        """What can be rented on one cloud, or on all that let SkyPilot in where that is known."""
        found = self.catalogs.offers()
        if cloud in {None, ANY}:
            return [each for each in found if not self._enabled or each.provider in self._enabled]
        return [each for each in found if each.provider == cloud]

    def close(self) -> None:
        """Let go of SkyPilot; clusters stay, and are adopted by the next control plane."""
        self._watch.close()
        self.sky.close()


class Catalogs:
    """What can be rented, read again when SkyPilot has fetched newer catalogs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read_at: tuple[float, ...] | None = None
        self._offers: Sequence[Offer] = ()

    def offers(self) -> Sequence[Offer]:
        stamps = []
        for path in sorted(self._folder.glob("v*/*/vms.csv")):
            with suppress(OSError):
                stamps.append(path.stat().st_mtime)
        with self._lock:
            if self._read_at != tuple(stamps):
                self._offers, self._read_at = load_offers(self._folder), tuple(stamps)
            return self._offers
