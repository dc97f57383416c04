"""`tandemn deploy`: a job where INPUT is given, a deployment where it is not. Each has its own file behind this one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from tandemn.cli import answers, job, online, options
from tandemn.cli import online_options as online_flags
from tandemn.cli.workload import JOB_FLAGS, ONLINE_FLAGS, refuse_mixture, split_names
from tandemn.protocol.jobs import Priority

app = typer.Typer(rich_markup_mode=None)


class DeployCommand(TyperCommand):
    """Keeps what follows `--` for the engine, and shows the flags of each workload by themselves."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            ctx.meta["engine_args"] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Both": [], "A job": [], "A deployment": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.param_type_name == "option":
                name = str(param.name)
                whose = "A job" if name in JOB_FLAGS else "A deployment" if name in ONLINE_FLAGS else "Both"
                sections[whose].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


@app.command("deploy", cls=DeployCommand)
def deploy(
    *,
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL [INPUT]",
            help="The model; and for a job its requests: a JSONL file, or s3://… (gs://, az://) to be read in place.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, where MODEL is not given.")] = None,
    slo: Annotated[
        str | None, typer.Option("--slo", help="Deadline: 4h, 0.5h, 30m, 90s; a plain number is hours.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option("--max-output-tokens", help="Longest answer, where a request names none.")
    ] = None,
    cloud: Annotated[str | None, typer.Option("--cloud", help="Where replicas run: local, aws, …")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Only this region of the cloud.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="GPU type; cpu is this machine's; auto. A deployment needs it."),
    ] = None,
    tp: Annotated[int | None, typer.Option("--tp", help="GPUs a replica splits each layer over.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Stages a replica splits the layers into.")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many replicas to run.")] = None,
    on_demand: Annotated[bool, typer.Option("--on-demand", help="No spot instances.")] = False,
    chunk_size: Annotated[int | None, typer.Option("--chunk-size", help="Requests a chunk.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="llamacpp, vllm or simulated.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="Most it may cost.")] = None,
    priority: Annotated[
        Priority,
        typer.Option(
            "--priority", help="Its share of what jobs have to share: low, normal or high (admins)."
        ),
    ] = Priority.NORMAL,
    advisor: Annotated[
        Literal["own", "koi"], typer.Option("--advisor", help="Whose plan is followed.")
    ] = "own",
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Although the plan cannot meet the deadline, or the model does not seem to fit."
        ),
    ] = False,
    persist: Annotated[
        bool, typer.Option("--persist", help="Leave the replicas running when the job ends.")
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave bad lines out instead of refusing the input.")
    ] = False,
    stop_at_deadline: Annotated[
        bool, typer.Option("--stop-at-deadline", help="Expire at the deadline instead of going on late.")
    ] = False,
    output: options.Output = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end; -o implies it.")] = False,
    gpu_count: online_flags.GpuCount = None,
    serverless_provider: online_flags.ServerlessProvider = None,
    spots_cloud: online_flags.SpotsCloud = None,
    tp_size: online_flags.TpSize = None,
    max_model_len: online_flags.MaxModelLen = None,
    concurrency: online_flags.Concurrency = None,
    workers_max: online_flags.WorkersMax = None,
    cold_start_mode: online_flags.ColdStartMode = None,
    no_scale_to_zero: online_flags.NoScaleToZero = False,
    scaling_policy: online_flags.Policy = None,
    service_name: online_flags.ServiceName = None,
    public: online_flags.Public = False,
    gcp_project: online_flags.GcpProject = None,
    gcp_region: online_flags.GcpRegion = None,
    serverless_only: online_flags.ServerlessOnly = False,
    quantization: online_flags.Quantization = None,
    spot_ttft_limit: online_flags.SpotTtftLimit = None,
    router_cloud: online_flags.RouterCloud = None,
    router_region: online_flags.RouterRegion = None,
    router_name: online_flags.RouterName = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Change the deployment of that name in place: what flags name, no more."
        ),
    ] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Run a batch job (MODEL INPUT --slo), or deploy an endpoint (MODEL --gpu).

    A job: each line of INPUT is one request in OpenAI's batch format. Returns when input and model have been
    checked; with --wait (or -o) when the job has ended. In a cloud, a terminal sees plan and price first and is asked.

    A deployment: one OpenAI-compatible endpoint over serverless and spot replicas. Shows what it costs and asks
    first (a terminal; --yes does not). Returns with the endpoint and its key as soon as one backend answers.
    The same command again goes on where an interrupted one stopped. Flags may stand in any order; their
    defaults are in [brackets].

    What follows `--` goes to the engine. Ctrl-C leaves what was begun running, and says how to come back.

    Exit codes: 0 submitted (with --wait: completed) or answering, 1 failed or cancelled, 2 wrong usage or bad
    input, 3 expired, over budget, or no fitting hardware.

    Examples:
        tandemn deploy demo/tiny requests.jsonl --slo 4h
        tandemn deploy demo/tiny requests.jsonl --slo 30m --cloud local --replicas 2 -o answers.jsonl
        tandemn deploy Qwen/Qwen3-32B requests.jsonl --slo 4h --cloud aws --gpu H100 --tp 2 --on-demand --yes
        tandemn deploy demo/tiny s3://bucket/requests.jsonl --slo 4 --json
        tandemn deploy --model demo/tiny --gpu cpu --cloud local
        tandemn deploy --model Qwen/Qwen3-0.6B --gpu L4 --serverless-provider modal -- --seed 1
        tandemn deploy --model Qwen/Qwen3-0.6B --gpu L4 --update --concurrency 64
    """
    model, source = split_names(names or [], model)
    given = options.given(context)
    engine_args = context.meta.get("engine_args", [])
    if source is None:
        refuse_mixture(given, is_job=False)
        flags = {**context.params, "model": model}
        return asyncio.run(
            online.deploy(flags, engine_args, is_update=update, force=force, yes=yes, as_json=as_json)
        )
    refuse_mixture(given, is_job=True)
    spec = job.spec_of({**context.params, "model": model}, engine_args)
    if not job.is_remote(source):
        job.check_input(Path(source))
    if output is not None:
        answers.check_output(output)
    asking, waiting = not yes and sys.stdin.isatty(), wait or output is not None
    return asyncio.run(
        job.deploy_job(
            spec,
            source,
            output,
            is_asking=asking,
            offers_koi="advisor" not in given,
            is_waiting=waiting,
            as_json=as_json,
        )
    )
