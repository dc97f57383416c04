"""This machine as a provider: one fleet process for each deployment serves both of its backends.

`local` has the serverless one, `local-spot` the spot one: two orders in the folder of the same process.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from decimal import Decimal
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from tandemn import settings
from tandemn.errors import InvalidInput, TandemnError
from tandemn.fleet.engines.adapters import adapters, choose
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.fleet.engines.process import log_tail
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.local.folder import FleetFolder, fleet_folder, fleet_names
from tandemn.serving.local.lifetimes import Lifetime, LifetimeLog
from tandemn.serving.local.orders import BackendReport, EngineOrder, Order, ServerlessOrder, SpotOrder
from tandemn.serving.providers import faults
from tandemn.serving.providers.provider import (
    CALL_S,
    LOCAL,
    LOCAL_SPOT,
    REMOTE_PREFIX,
    SERVERLESS_REPLICAS,
    Account,
    BackendPlan,
    BackendStatus,
    Remote,
    ReplicaSeen,
    Secrets,
    Usage,
    remote_name,
)
from tandemn.settling import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

#: What `--gpu` calls this machine's processor.
CPU = "cpu"
#: How long a fleet process may take to end in order, in seconds; then it is killed, and its engines with it.
STOP_S = 10.0
#: Between two looks at one that ends.
LOOK_S = 0.02
#: When to look again: it is a file. A process that starts takes less than a second.
STATUS_S, STARTING_S = 1.0, 0.2
#: How long a replica that has ended is told of, in seconds: looks can be late, and a control plane may start anew.
ENDED_SEEN_S = 120.0


class Local:
    """Adapter of this machine.

    Args:
        market: serverless or spot.
        loaded: the settings of this machine.
        call_s: longest single call, in seconds.
    """

    def __init__(self, market: Market, loaded: Settings, *, call_s: float = CALL_S) -> None:
        self.name = LOCAL_SPOT if market is Market.SPOT else LOCAL
        self.market = market
        self._settings = loaded
        self._call_s = call_s

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        """Open the serverless one, in the state folder of the environment."""
        del project, region
        return cls(Market.SERVERLESS, settings.load())

    async def check(self) -> Account:
        home = self._settings.home_path
        await self._do(_prove, self._folder(remote_name("check")))
        return Account(provider=self.name, detail=f"this machine, in {home}")

    def offers(self) -> Sequence[Offer]:
        """This machine is in no catalog."""
        return ()

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        engine = self._engine(spec)
        warnings: tuple[str, ...] = ()
        if spec.region is not None:
            warnings = (f"this machine has no regions: {spec.region} is not used",)
        price, source = self._price()
        order: SpotOrder | ServerlessOrder
        if self.market is Market.SPOT:
            order, clamped = self._spot(spec, engine)
            warnings += clamped
        else:
            order = ServerlessOrder(
                engine=engine, scaling=spec.scaling.serverless, max_containers=SERVERLESS_REPLICAS
            )
        return BackendPlan(
            provider=self.name,
            market=self.market,
            remote_name=remote_name(spec.service_name),
            request={self.market.value: order.model_dump(mode="json")},
            usd_per_hour=price,
            price_source=source,
            # The simulated one speaks as vLLM does.
            engine="llamacpp" if engine.engine is EngineName.LLAMACPP else "vllm",
            # Its front knows at every moment which replicas are ready, and says when they are full.
            concurrency=None if self.market is Market.SPOT else spec.scaling.serverless.concurrency,
            most_replicas=None if self.market is Market.SPOT else SERVERLESS_REPLICAS,
            warnings=warnings,
        )

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        order = Order.model_validate(
            {
                **plan.request,
                "usd_per_hour": plan.usd_per_hour,
                "engine_api_key": secrets.engine_api_key,
                "hf_token": secrets.hf_token,
            }
        )
        folder = self._folder(plan.remote_name)
        await self._do(folder.give_order, self.market, order)
        why = await self._do(folder.why_not_up)
        if why is not None:
            raise faults.unavailable(self.name, f"its fleet process ended as soon as it was started: {why}")
        await self._do(folder.start, self._settings)
        return self._remote(plan.remote_name)

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        del place
        names = await self._do(fleet_names, self._settings.home_path, REMOTE_PREFIX)
        return [
            self._remote(name)
            for name in names
            if remote_name in (None, name) and await self._do(self._is_there, self._folder(name))
        ]

    async def status(self, remote: Remote) -> BackendStatus:
        folder = self._folder(remote.remote_name)
        orders = await self._do(folder.orders)
        if self.market not in orders or not await self._do(folder.is_running):
            # Where only the process has died, the next `ensure` starts it again.
            return BackendStatus(state=BackendState.DELETED, look_s=STATUS_S)
        report = await self._do(folder.living_report)
        backend = None if report is None else report.backends.get(self.market)
        if report is None or backend is None:
            return BackendStatus(
                state=BackendState.PROVISIONING, reason="its fleet process starts", look_s=STARTING_S
            )
        lives = await self._do(LifetimeLog(folder.lifetimes).recent, self.market)
        return BackendStatus(
            state=backend.state,
            url=backend.url,
            replicas=backend.ready,
            seen=self._seen(backend, lives, report.at),
            look_s=STATUS_S,
            reason=backend.reason,
        )

    def _seen(
        self, backend: BackendReport, lives: Mapping[str, Lifetime], now: float
    ) -> tuple[ReplicaSeen, ...]:
        """Those that run, and those that ended lately; times of a faster clock are none of ours."""
        if self._settings.local_speed != 1:
            lives = {}
        running = {each.replica_id: each for each in backend.replicas}
        seen = [
            ReplicaSeen(
                replica_id=name,
                state=each.state,
                pid=each.pid,
                began=lives[name].began if name in lives else None,
            )
            for name, each in running.items()
        ]
        gone = [
            ReplicaSeen(replica_id=name, state=each.why, began=each.began, ended=each.ended)
            for name, each in lives.items()
            if name not in running and each.ended is not None and each.ended > now - ENDED_SEEN_S
        ]
        return (*seen, *gone)

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        folder = self._folder(remote.remote_name)
        content = (await self._do(folder.orders)).get(self.market)
        if content is None:
            raise faults.not_found(self.name, remote.remote_name)
        await self._do(folder.give_order, self.market, folder.read_order(content).scaled(min_replicas))

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {secrets.engine_api_key}"}

    async def delete(self, remote_name: str, place: str = "") -> bool:
        del place
        folder = self._folder(remote_name)
        await self._do(folder.take_back, self.market)
        loop = asyncio.get_running_loop()
        until = loop.time() + STOP_S
        is_told = False
        while await self._do(self._is_there, folder):
            is_last = not await self._do(folder.orders)
            if is_last and not is_told:
                # One that is still starting would only hear of it later.
                await self._do(folder.signal, signal.SIGTERM)
                is_told = True
            if loop.time() > until:
                if is_last:
                    await self._do(folder.signal, signal.SIGKILL)
                return False
            await asyncio.sleep(LOOK_S)
        if not await self._do(folder.orders):
            await self._do(folder.forget_process)
        return True

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        log = LifetimeLog(self._folder(remote.remote_name).lifetimes)
        seconds, usd = await self._do(log.total, self.market, since, until)
        return Usage(usd=usd, source="metered", replica_seconds=seconds)

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        return await self._do(_log_lines, self._folder(remote.remote_name), self.market, lines)

    async def close(self) -> None:
        """Nothing is held."""

    # --- planning ---

    def _engine(self, spec: DeploymentSpec) -> EngineOrder:
        if spec.gpu.lower() != CPU:
            raise InvalidInput(
                f"this machine does not offer the GPU {spec.gpu}",
                code="gpu_not_offered",
                next_step="--gpu cpu",
                param="gpu",
            )
        if spec.gpu_count > 1:
            raise InvalidInput("this machine is one cpu", code="too_many_gpus", param="gpu_count")
        name = choose(spec.model, self._settings.local_engine)
        extra: list[str] = []
        if name is EngineName.VLLM:
            extra += ["--enforce-eager"] if spec.cold_start_mode == "fast_boot" else []
            extra += ["--quantization", spec.quantization] if spec.quantization else []
        elif spec.quantization is not None:
            raise InvalidInput(
                f"the engine {name} has no --quantization: the model's file says it",
                code="wrong_usage",
                param="quantization",
            )
        order = EngineOrder(
            engine=name,
            model=spec.model,
            max_model_len=spec.max_model_len,
            engine_args=(*extra, *spec.engine_args),
        )
        adapters(self._settings)[name].check(
            EngineSpec(engine=name, model=spec.model, port=0, extra_args=order.engine_args)
        )
        return order

    def _spot(self, spec: DeploymentSpec, engine: EngineOrder) -> tuple[SpotOrder, tuple[str, ...]]:
        scaling, slots = spec.scaling.spot, self._settings.local_slots
        warnings: tuple[str, ...] = ()
        if scaling.max_replicas > slots:
            warning = f"this machine has {slots} slots (TANDEMN_LOCAL_SLOTS): spot.max_replicas is {slots}"
            warnings = (f"{warning}, not {scaling.max_replicas}",)
            least = min(scaling.min_replicas, slots)
            scaling = scaling.model_copy(update={"max_replicas": slots, "min_replicas": least})
        delay_s = self._settings.local_spot_start_s
        return SpotOrder(engine=engine, scaling=scaling, start_delay_s=delay_s), warnings

    def _price(self) -> tuple[Decimal, str]:
        """This machine is there anyway: a replica is free, where nothing else is set."""
        if self.market is Market.SPOT:
            price, setting = self._settings.local_usd_per_hour, "TANDEMN_LOCAL_USD_PER_HOUR"
        else:
            price = self._settings.local_serverless_usd_per_hour
            setting = "TANDEMN_LOCAL_SERVERLESS_USD_PER_HOUR"
        return (Decimal(0), "this machine") if price is None else (price, setting)

    # --- the folder ---

    def _folder(self, remote_name: str) -> FleetFolder:
        return fleet_folder(self._settings.home_path, remote_name)

    def _is_there(self, folder: FleetFolder) -> bool:
        """Whether anything of this backend is left: its order, or what the process runs."""
        orders = folder.orders()
        if self.market in orders:
            return True
        if not folder.is_running():
            return False
        report = folder.living_report()
        return not orders or report is None or self.market in report.backends

    def _remote(self, remote_name: str) -> Remote:
        return Remote(provider=self.name, remote_name=remote_name, remote_id=f"{remote_name}/{self.market}")

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Touch the disk or a process, in a thread: a disk can be slow."""
        async with faults.translated(self.name, (OSError,), self._translate, limit_s=self._call_s):
            return await settled(asyncio.to_thread(call, *args, **kwargs), patience_s=self._call_s)

    def _translate(self, exc: Exception) -> TandemnError:
        detail = faults.shown(exc)
        match exc:
            case PermissionError():
                return faults.permission(self.name, detail)
            case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EAGAIN | errno.ENOMEM | errno.EMFILE):
                return faults.quota(self.name, detail)
        return faults.unavailable(self.name, detail)


class LocalSpot:
    """What the entry point `local-spot` names."""

    @staticmethod
    def open(*, project: str | None = None, region: str | None = None) -> Local:
        """Open the spot one, in the state folder of the environment."""
        del project, region
        return Local(Market.SPOT, settings.load())


def _prove(folder: FleetFolder) -> None:
    """Write where orders are written."""
    folder.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder.path.with_name(".check")
    probe.touch(mode=0o600)
    probe.unlink(missing_ok=True)


def _log_lines(folder: FleetFolder, market: Market, lines: int) -> list[str]:
    """The end of the newest replica's log, after that of the fleet process."""
    logs = sorted(folder.logs.glob(f"{market}-*.log"), key=lambda path: path.stat().st_mtime)
    tail = [line for path in (folder.logs / "fleet.log", *logs[-1:]) for line in log_tail(path).splitlines()]
    return tail[-lines:] if lines > 0 else []
