"""What the machine does that a replica runs on: its CPUs and memory, and its GPUs where it has NVIDIA's driver."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

import psutil
import structlog

from tandemn.protocol.replicas import MAX_GPUS, GpuReading, MachineReading

#: Between two readings: `nvidia-smi` takes some 50 ms of a core, and figures change no faster than people look.
READING_S = 5.0
#: How long `nvidia-smi` may take; a driver that hangs takes for ever.
GPUS_S = 10.0
#: How long one that was killed is waited for.
REAP_S = 1.0
#: Readings in a row that may fail before GPUs are not asked about any more.
FAILURES = 3

_QUERY = (
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)

_log = structlog.get_logger()


class Machine:
    """One per runner; `reading` is the last one.

    Args:
        nvidia_smi: the command; None: there are no GPUs to be asked about.
    """

    def __init__(self, nvidia_smi: str | None = None) -> None:
        self._nvidia_smi = nvidia_smi
        self._failures = 0
        self.reading: MachineReading | None = None

    async def run(self) -> None:
        """Read now and then, until cancelled."""
        psutil.cpu_percent()  # use is told of the time since the call before: this one begins it
        await asyncio.sleep(min(1.0, READING_S))
        while True:
            self.reading = await self.read()
            await asyncio.sleep(READING_S)

    async def read(self) -> MachineReading:
        memory = psutil.virtual_memory()
        return MachineReading(
            cpu_use=min(max(psutil.cpu_percent() / 100, 0.0), 1.0),
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            gpus=await self._gpus(),
        )

    async def _gpus(self) -> list[GpuReading]:
        if self._nvidia_smi is None or self._failures >= FAILURES:
            return []
        try:
            text = await _output_of(self._nvidia_smi)
            self._failures = 0
        except (OSError, TimeoutError, ValueError) as exc:
            self._failures += 1
            _log.warning("GPUs tell no figures", error=str(exc) or "nvidia-smi hangs", count=self._failures)
            return []
        return parse_gpus(text)


def find_nvidia_smi() -> str | None:
    """Return the command, where there is one."""
    return shutil.which("nvidia-smi")


def parse_gpus(text: str) -> list[GpuReading]:
    """Read what `nvidia-smi` lists (percent, MiB, MiB); what a GPU does not tell, such as `[N/A]`, is None."""
    found = []
    for line in text.splitlines():
        cells = [_number(cell) for cell in line.split(",")]
        if len(cells) == 3:
            percent, used, total = cells
            found.append(
                GpuReading(
                    use=min(percent / 100, 1.0) if percent is not None else None,
                    memory_used_bytes=round(used * 2**20) if used is not None else None,
                    memory_total_bytes=round(total * 2**20) if total is not None else None,
                )
            )
    return found[:MAX_GPUS]


def _number(cell: str) -> float | None:
    text = cell.strip()
    return float(text) if text.replace(".", "", 1).isdecimal() and text.isascii() else None


async def _output_of(nvidia_smi: str) -> str:
    """Raises OSError, TimeoutError, or ValueError where it fails."""
    process = await asyncio.create_subprocess_exec(
        nvidia_smi,
        *_QUERY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(GPUS_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            # One that a driver holds fast does not end even so.
            with suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    await process.wait()
    if process.returncode:
        raise ValueError(f"nvidia-smi ended with status {process.returncode}")
    return out.decode(errors="replace")
