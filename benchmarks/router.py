"""The router beside its peers, in one run: requests/s, CPU per event, added latency, memory, failover.

    python benchmarks/router.py [--install-peers] [--rounds 3] [--only router,nginx] [--json FILE]
    python benchmarks/router.py --part requests --json FILE      and so on, part by part into one file

Proxies run on core 0; the stand-in for a vLLM server and the load (router_load.c, built with cc on the spot) on
core 1. In every round each proxy meets each scenario in turn, another one first each time, and all proxies but the
one that is measured are stopped. nginx takes part where it is on PATH, vLLM's and SGLang's routers (Rust) where
`--install-peers` has put them into .cache/router-peers. Wall-clock figures need a quiet machine: `others` is how many
cores all else used during a measurement, one that was disturbed is repeated while `--patience` lasts, and medians are
of the undisturbed ones where there are any. `--realtime` keeps what is measured from waiting for others. Ratios of
one run are what to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".cache" / "router-peers"
#: What `--install-peers` installs, each into an environment of its own.
PEER_PACKAGES = {"vllm-router": "vllm-router==0.1.17", "sglang-router": "sglang-router==0.3.2"}
KEY = "sk-benchmark-0123456789abcdef0123"
#: Scenario: what the backend is set to, and what the load does (mode, connections, seconds, warm-up, ramp, rate, vary).
SCENARIOS = {
    "closed": ("events=200&gap_us=0", ("closed", "64", "3", "1", "0", "0"), "0"),
    "varied heads": ("events=200&gap_us=0", ("closed", "64", "3", "1", "0", "0"), "1"),
    "200/s": ("events=200&gap_us=0", ("rate", "64", "3", "0.5", "0", "200"), "0"),
    "500 streams": ("events=200&gap_us=20000", ("stream", "500", "4", "0.5", "1000", "0"), "0"),
    "2000 idle": ("events=2&gap_us=60000000", ("idle", "2000", "1", "0.5", "3000", "0"), "0"),
}
TLS_SCENARIOS = ("closed", "500 streams", "2000 idle")
#: What can be run by itself, where the machine is quiet for some minutes only: its scenarios.
PARTS = {
    "requests": ("closed", "varied heads"),
    "streams": ("200/s", "500 streams"),
    "memory": ("2000 idle",),
    "faults": (),
    "tls": (),
}
#: Cores used by others beyond which a measurement counts as disturbed.
DISTURBED = 0.1


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Bench:
    def __init__(self, folder: Path, patience_s: float, *, is_realtime: bool) -> None:
        self.folder = folder
        self.patience_s = patience_s
        self.priority = ["chrt", "--fifo", "1"] if is_realtime else []
        self.tool = folder / "router_load"
        self.running: list[subprocess.Popen[bytes]] = []
        compiler = shutil.which("cc")
        if compiler is None:
            sys.exit(
                "benchmarks/router.py needs a C compiler named cc (Debian: apt-get install gcc libc6-dev)"
            )
        subprocess.run([compiler, "-O2", "-o", str(self.tool), str(HERE / "router_load.c")], check=True)

    def start(self, argv: list[str], core: int, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *self.priority, *argv],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def serve(self) -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        process = self.start([str(self.tool), "serve", str(port)], 1)
        wait_for(lambda: answers(port))
        return process, port

    def load(self, port: int, arguments: tuple[str, ...], vary: str, pids: str) -> dict[str, Any]:
        argv = [
            "taskset",
            "-c",
            "1",
            *self.priority,
            str(self.tool),
            "load",
            str(port),
            *arguments,
            KEY,
            vary,
        ]
        done = subprocess.run(argv, capture_output=True, env={**os.environ, "CPU_OF": pids}, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"failed": -1}
        return found

    def cpu_s(self) -> float:
        """CPU seconds that the benchmark itself has used, the load that has ended included."""
        used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        total = sum(one.ru_utime + one.ru_stime for one in used)
        for process in self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(sum(one.cpu_times()[:2]) for one in tree(process))
        return total

    def drop(self, process: subprocess.Popen[bytes]) -> None:
        """End one process at once."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.running.remove(process)

    def end(self) -> None:
        for process in self.running:
            for number in (signal.SIGCONT, signal.SIGTERM):
                if process.poll() is None:
                    os.killpg(process.pid, number)
        for process in self.running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()


def wait_for(condition: Any, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a process did not come up")
        time.sleep(0.05)


def post(port: int, limit_s: float = 5.0) -> int:
    """One small request; its status, 0 where there was none."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = b'{"model":"mock","messages":[{"role":"user","content":"hi"}]}'
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=limit_s) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def answers(port: int) -> bool:
    return post(port, 2.0) == 200


def configure(port: int, query: str) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/set?{query}", timeout=5).close()


# --- who takes part -------------------------------------------------------------------------------------


def router(bench: Bench, urls: list[str], ca_file: str | None = None) -> tuple[Any, int]:
    port = free_port()
    table = bench.folder / f"table-{port}.json"
    backends: list[dict[str, Any]] = []
    for number, url in enumerate(urls):
        backends.append(
            {"name": f"b{number}", "market": "serverless", "url": url, "price_usd_per_hour": number}
        )
        if ca_file is not None:
            backends[-1]["ca_file"] = ca_file
    table.write_text(json.dumps({"version": 1, "backends": backends}))
    argv = [sys.executable, "-m", "tandemn.router", "--port", str(port), "--table", str(table)]
    return bench.start(argv, 0, TANDEMN_ROUTER_KEY=KEY), port


def floor(bench: Bench, urls: list[str]) -> tuple[Any, int]:
    port = free_port()
    argv = [sys.executable, str(HERE / "router_floor.py"), str(port), urls[0].rpartition(":")[2]]
    return bench.start(argv, 0), port


def nginx(bench: Bench, urls: list[str], ca_file: str | None = None) -> tuple[Any, int]:
    port = free_port()
    servers = " ".join(f"server {url.partition('://')[2]};" for url in urls)
    trust = (
        f"proxy_ssl_trusted_certificate {ca_file}; proxy_ssl_verify on; proxy_ssl_name localhost;"
        if ca_file
        else ""
    )
    scheme = "https" if ca_file else "http"
    inner = f"""upstream be {{ {servers} keepalive 1024; keepalive_requests 100000000; }}
      server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass {scheme}://be; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_buffering off; {trust} }} }}"""
    return bench.start(nginx_command(bench, f"proxy-{port}", inner), 0), port


def nginx_command(bench: Bench, name: str, http: str) -> list[str]:
    temporary = " ".join(
        f"{kind}_temp_path {bench.folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (bench.folder / f"{name}.conf").write_text(
        f"daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {bench.folder}/{name}.pid;"
        f" error_log /dev/null; events {{ worker_connections 16384; }}"
        f" http {{ access_log off; keepalive_requests 100000000; {temporary} {http} }}"
    )
    return ["nginx", "-c", str(bench.folder / f"{name}.conf"), "-e", "/dev/null"]


def rust(name: str) -> Any:
    def begin(bench: Bench, urls: list[str]) -> tuple[Any, int]:
        port = free_port()
        argv = [str(PEERS / name / "bin" / name), *(["launch"] if name == "sglang-router" else [])]
        argv += [
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--worker-urls",
            *urls,
            "--policy",
            "round_robin",
        ]
        argv += [
            "--prometheus-port",
            str(free_port()),
            "--log-level",
            "warn" if name == "sglang-router" else "warning",
        ]
        return bench.start(argv, 0), port

    return begin


def install_peers() -> None:
    """Into .cache, from PyPI, with the uv of this repository or of the machine."""
    ours = HERE.parent / ".tools" / "bin" / "uv"
    uv = str(ours) if ours.exists() else shutil.which("uv")
    if uv is None:
        sys.exit("--install-peers needs uv: run `make setup` first")
    for name, package in PEER_PACKAGES.items():
        if not (PEERS / name / "bin" / name).exists():
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(PEERS / name)], check=True)
            python = str(PEERS / name / "bin" / "python")
            subprocess.run([uv, "pip", "install", "--quiet", "--python", python, package], check=True)


def contestants() -> dict[str, Any]:
    found: dict[str, Any] = {"router": router, "floor": floor}
    if shutil.which("nginx"):
        found["nginx"] = nginx
    for name in PEER_PACKAGES:
        if (PEERS / name / "bin" / name).exists():
            found[name] = rust(name)
    return found


# --- measuring ------------------------------------------------------------------------------------------


def tree(process: Any) -> list[psutil.Process]:
    top = psutil.Process(process.pid)
    return [top, *top.children(recursive=True)]


def pss_kb(processes: list[psutil.Process]) -> float:
    return sum(p.memory_full_info().pss for p in processes) / 1024


def measure(bench: Bench, process: Any, port: int, backend: int, scenario: str) -> dict[str, Any]:
    query, arguments, vary = SCENARIOS[scenario]
    configure(backend, query)
    processes = [] if process is None else tree(process)
    if process is not None:
        os.killpg(process.pid, signal.SIGCONT)
        try:
            wait_for(lambda: answers(port), 15.0)
        except TimeoutError:
            return {"failed": -1, "others": 0.0}
    while True:
        begun, all_before, own_before = time.monotonic(), busy_s(), bench.cpu_s()
        if scenario == "2000 idle":
            result = measure_idle(bench, processes, port, arguments)
        else:
            result = bench.load(port, arguments, vary, ",".join(str(p.pid) for p in processes))
        took_s = time.monotonic() - begun
        others = (busy_s() - all_before - (bench.cpu_s() - own_before)) / took_s
        if others <= DISTURBED or bench.patience_s <= 0 or scenario == "2000 idle":
            break
        bench.patience_s -= took_s
        time.sleep(1.0)  # what the last try left under way ends
    configure(backend, "events=1&gap_us=0")
    if process is not None:
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGSTOP)
    return {**result, "others": others}


def busy_s() -> float:
    """CPU seconds that were used on this machine, or taken from it."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def measure_idle(
    bench: Bench, processes: list[psutil.Process], port: int, arguments: tuple[str, ...]
) -> dict[str, Any]:
    before = pss_kb(processes)
    argv = ["taskset", "-c", "1", *bench.priority, str(bench.tool), "load", str(port), *arguments, KEY, "0"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        result: dict[str, Any] = json.loads(holder.stdout.readline())
        result["kb_per_stream"] = (pss_kb(processes) - before) / max(1, result["holding"])
        holder.kill()
    return result


def run_round(
    bench: Bench, running: dict[str, Any], backend: int, scenarios: tuple[str, ...], number: int
) -> list[dict[str, Any]]:
    """Each round begins with another one: who comes first finds a core that was idle, who follows a warm one."""
    found = []
    names = list(running)
    first = number % len(names)
    for scenario in scenarios:
        for name in names[first:] + names[:first]:
            process, port, begin = running[name]
            if scenario != "2000 idle":
                result = measure(bench, process, port, backend, scenario)
            elif begin is not None:
                # A process of its own: what earlier scenarios freed would hide what a stream takes.
                fresh, fresh_port = begin()
                wait_for(lambda fresh_port=fresh_port: answers(fresh_port))
                result = measure(bench, fresh, fresh_port, backend, scenario)
                bench.drop(fresh)
            else:
                continue
            found.append({"scenario": scenario, "name": name, **result})
            print(f"  {scenario:20} {name:18} {figures(found[-1])}", flush=True)
    return found


def figures(result: dict[str, Any]) -> str:
    """One line of what a run gave."""
    seconds = result.get("seconds", 1) or 1
    done = result.get("events") or result.get("answered", 0)
    parts = [f"{done / seconds:9.0f}/s", f"{result.get('cpu_s', 0) / max(1, done) * 1e6:7.1f} us CPU"]
    parts += [
        f"{key} {result[key] / 1000:.2f} ms"
        for key in ("latency_p50", "ttft_p50", "ttft_p99")
        if key in result
    ]
    if "kb_per_stream" in result:
        parts.append(f"{result['kb_per_stream']:.1f} KB a stream")
    return "  ".join(parts) + f"  failed {result.get('failed')}  others {result['others']:.2f}"


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by scenario and name, of the undisturbed measurements where there are any."""
    made: dict[str, Any] = {}
    for scenario in SCENARIOS:
        for name in dict.fromkeys(r["name"] for r in results):
            runs = [r for r in results if r["scenario"] == scenario and r["name"] == name]
            if not runs:
                continue
            undisturbed = [r for r in runs if r["others"] <= DISTURBED]
            row: dict[str, float] = {"runs": len(runs), "undisturbed": len(undisturbed)}
            runs = undisturbed or runs
            for key in ("latency_p50", "latency_p99", "ttft_p50", "ttft_p99", "kb_per_stream"):
                values = [r[key] for r in runs if key in r]
                if values:
                    row[key] = statistics.median(values)
            if scenario != "2000 idle":
                unit = "events" if "streams" in scenario else "answered"
                row["per_s"] = statistics.median(r.get(unit, 0) / (r.get("seconds") or 1) for r in runs)
                row["cpu_us"] = statistics.median(
                    r.get("cpu_s", 0) / max(1, r.get(unit, 0)) * 1e6 for r in runs
                )
            made.setdefault(scenario, {})[name] = row
    return made


def targets(found: dict[str, Any]) -> dict[str, Any]:
    """What the router is asked for, against what this run gave; None where a peer is missing."""

    def get(scenario: str, name: str, key: str) -> float | None:
        value: float | None = found.get(scenario, {}).get(name, {}).get(key)
        return value

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if not above or not below else round(above / below, 3)

    def added_ms(scenario: str, key: str) -> float | None:
        ours, direct = get(scenario, "router", key), get(scenario, "direct", key)
        return None if ours is None or direct is None else round((ours - direct) / 1000, 3)

    rust_rate = max((get("closed", name, "per_s") or 0 for name in PEER_PACKAGES), default=0)
    rust_event = min(
        (value for name in PEER_PACKAGES if (value := get("500 streams", name, "cpu_us"))), default=None
    )
    ours = get("closed", "router", "per_s")
    return {
        "requests/s, x the better Rust router": {"is": ratio(ours, rust_rate), "at_least": 2.5},
        "requests/s, x nginx": {"is": ratio(ours, get("closed", "nginx", "per_s")), "at_least": 0.45},
        "the same by CPU, x nginx": {
            "is": ratio(get("closed", "nginx", "cpu_us"), get("closed", "router", "cpu_us")),
            "at_least": 0.45,
        },
        "CPU per paced event, x the better Rust router": {
            "is": ratio(get("500 streams", "router", "cpu_us"), rust_event),
            "at_most": 1.0,
        },
        "added TTFT p50, ms": {"is": added_ms("500 streams", "ttft_p50"), "at_most": 0.3},
        "added TTFT p99, ms": {"is": added_ms("500 streams", "ttft_p99"), "at_most": 1.5},
        "added latency at 200/s p50, ms": {"is": added_ms("200/s", "latency_p50"), "at_most": 0.3},
        "KB per idle stream": {"is": get("2000 idle", "router", "kb_per_stream"), "at_most": 10.0},
    }


def failover(bench: Bench) -> dict[str, Any]:
    """20 requests where the first of two backends is bad."""
    found: dict[str, Any] = {}
    for case, query in (("closes", "fault=1"), ("503", "fault=2"), ("refuses", "")):
        first, second = bench.serve(), bench.serve()
        process, port = router(bench, [f"http://127.0.0.1:{first[1]}", f"http://127.0.0.1:{second[1]}"])
        wait_for(lambda port=port: answers(port))
        if query:
            configure(first[1], query)
        else:
            os.killpg(first[0].pid, signal.SIGKILL)
        found[case] = sum(post(port) == 200 for _ in range(20))
        for ended in (process, first[0], second[0]):
            os.killpg(ended.pid, signal.SIGKILL)
    return {"answered of 20": found}


def shift(bench: Bench) -> dict[str, Any]:
    """Spot comes up and goes, while requests come: seconds until it gets them, and requests lost when it goes."""
    _, serverless = bench.serve()
    spot_port, port = free_port(), free_port()
    table = bench.folder / "shift.json"
    spot = {
        "name": "spot",
        "market": "spot",
        "url": f"http://127.0.0.1:{spot_port}",
        "health_path": "/v1/models",
    }
    modal = {"name": "modal", "market": "serverless", "url": f"http://127.0.0.1:{serverless}"}
    table.write_text(json.dumps({"version": 1, "backends": [spot, modal]}))
    argv = [sys.executable, "-m", "tandemn.router", "--port", str(port), "--table", str(table)]
    process = bench.start(argv, 0, TANDEMN_ROUTER_KEY=KEY)
    wait_for(lambda: answers(port))
    begun = bench.start([str(bench.tool), "serve", str(spot_port)], 1)
    wait_for(lambda: answers(spot_port))
    up_at = time.monotonic()
    wait_for(lambda: post(port) == 200 and state_of(port, "spot") == "ready")
    shifted_s = time.monotonic() - up_at
    os.killpg(begun.pid, signal.SIGKILL)
    answered = sum(post(port) == 200 for _ in range(20))
    os.killpg(process.pid, signal.SIGKILL)
    return {"seconds until spot is used": round(shifted_s, 2), "answered of 20 when it goes": answered}


def state_of(port: int, name: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/router/health", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        backends = json.load(answer)["backends"]
    return next(str(backend["state"]) for backend in backends if backend["name"] == name)


def tls_backend(bench: Bench, backend: int) -> tuple[int, str]:
    """Nginx on core 1 with a certificate, in front of the same stand-in."""
    cert, key = bench.folder / "cert.pem", bench.folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    port = free_port()
    inner = f"""upstream be {{ server 127.0.0.1:{backend}; keepalive 2048; keepalive_requests 100000000; }}
      server {{ listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {cert}; ssl_certificate_key {key};
      location / {{ proxy_pass http://be; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}"""
    bench.start(nginx_command(bench, "tls", inner), 1)
    return port, str(cert)


def start_all(bench: Bench, chosen: dict[str, Any], urls: list[str], **more: Any) -> dict[str, Any]:
    running: dict[str, Any] = {}
    for name, begin in chosen.items():
        process, port = begin(bench, urls, **more)
        try:
            wait_for(lambda port=port: answers(port))
        except TimeoutError:
            print(f"  {name} did not come up, left out")
            continue
        os.killpg(process.pid, signal.SIGSTOP)
        running[name] = (process, port, partial(begin, bench, urls, **more))
    return running


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install-peers", action="store_true", help="vLLM's and SGLang's routers, from PyPI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names, comma-separated")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument(
        "--realtime", action="store_true", help="before all else on this machine (as root: SCHED_FIFO)"
    )
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds in all for repeating what was disturbed"
    )
    parser.add_argument("--json", type=Path, help="where to add all figures to those of earlier runs")
    given = parser.parse_args()
    if given.install_peers:
        install_peers()
    chosen = {
        name: begin
        for name, begin in contestants().items()
        if not given.only or name in given.only.split(",")
    }
    report: dict[str, Any] = {"runs": [], "tls_runs": [], "faults": {}}
    if given.json and given.json.exists():
        report = json.loads(given.json.read_text())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.patience, is_realtime=given.realtime)
        for part in given.part or PARTS:
            try:
                run(bench, chosen, part, given.rounds, report)
            finally:
                bench.end()
    report |= {"medians": summary(report["runs"]), "tls": summary(report["tls_runs"])}
    report["targets"] = targets(report["medians"])
    print(json.dumps({name: report[name] for name in ("medians", "tls", "faults", "targets")}, indent=1))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


def run(bench: Bench, chosen: dict[str, Any], part: str, rounds: int, report: dict[str, Any]) -> None:
    """Run one part and note its figures in the report."""
    if part == "faults":
        report["faults"] = failover(bench) | shift(bench)
    elif part == "tls":
        report["tls_runs"] += run_tls(bench, chosen, rounds)
    else:
        report["runs"] += run_plain(bench, chosen, PARTS[part], rounds)


def run_plain(
    bench: Bench, chosen: dict[str, Any], scenarios: tuple[str, ...], rounds: int
) -> list[dict[str, Any]]:
    _, backend = bench.serve()
    running = {
        "direct": (None, backend, None),
        **start_all(bench, chosen, [f"http://127.0.0.1:{backend}"]),
    }
    results = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}")
        results += run_round(bench, running, backend, scenarios, number)
    return results


def run_tls(bench: Bench, chosen: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """The router and nginx with TLS to the backend."""
    if not shutil.which("nginx"):
        return []
    _, backend = bench.serve()
    port, cert = tls_backend(bench, backend)
    both = {name: begin for name, begin in chosen.items() if name in {"router", "nginx"}}
    running = start_all(bench, both, [f"https://localhost:{port}"], ca_file=cert)
    results = []
    for number in range(rounds):
        print(f"TLS to the backend, round {number + 1} of {rounds}")
        results += run_round(bench, running, backend, TLS_SCENARIOS, number)
    return results


if __name__ == "__main__":
    main()
