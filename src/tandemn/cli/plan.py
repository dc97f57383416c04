"""`tandemn plan` and `tandemn quota`: what would run where, at what price, and why; nothing is launched."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from tandemn.cli import deployment_report, options, plan_report
from tandemn.cli import online_options as online_flags
from tandemn.cli.connection import connect
from tandemn.cli.deploy import DeployCommand
from tandemn.cli.display import upload_display
from tandemn.cli.job import check_input, is_remote, spec_of
from tandemn.cli.output import emit, say
from tandemn.cli.text import table
from tandemn.cli.workload import refuse_mixture, split_names
from tandemn.errors import TandemnError
from tandemn.protocol.deployments import DeploymentRequest
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.plans import PlanAnswer

app = typer.Typer(rich_markup_mode=None)


@app.command("plan", cls=DeployCommand)
def plan(
    *,
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL [INPUT]", help="As for deploy; without INPUT, a deployment is planned."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, where MODEL is not given.")] = None,
    slo: Annotated[str | None, typer.Option("--slo", help="Deadline of the job: 4h, 30m.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Only this GPU type; auto: any.")] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option("--max-output-tokens", help="Longest answer of the job.")
    ] = None,
    cloud: Annotated[str | None, typer.Option("--cloud", help="Only this cloud.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Only this region.")] = None,
    tp: Annotated[int | None, typer.Option("--tp", help="GPUs a replica splits each layer over.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Stages a replica splits the layers into.")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many replicas.")] = None,
    on_demand: Annotated[bool, typer.Option("--on-demand", help="No spot instances.")] = False,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="Most it may cost.")] = None,
    advisor: Annotated[
        Literal["own", "koi"], typer.Option("--advisor", help="Whose plan comes first.")
    ] = "own",
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave bad lines out.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although the deadline is missed, or the model does not seem to fit."),
    ] = False,
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
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Plan a job (MODEL INPUT --slo) or a deployment (MODEL --gpu): configurations, prices, reasons.

    A deployment's plan asks the providers who is signed in, and makes nothing; --gpu auto compares every GPU
    that the model fits.

    Exit codes: 0 planned, 2 wrong usage or input, 3 no plan meets the deadline or budget, or nothing fits; then
    the error says what would.

    Examples:
        tandemn plan Qwen/Qwen3-32B requests.jsonl --slo 4h
        tandemn plan Qwen/Qwen3-32B requests.jsonl --slo 4h --gpu H100 --on-demand --json
        tandemn plan --model Qwen/Qwen3-0.6B --gpu L4
        tandemn plan --model Qwen/Qwen3-0.6B --gpu auto
    """
    model, source = split_names(names or [], model)
    given = options.given(context)
    flags = {**context.params, "model": model}
    if source is None:
        refuse_mixture(given, is_job=False)
        spec = online_flags.spec_of(flags, context.meta.get("engine_args", []))
        asyncio.run(_plan_deployment(DeploymentRequest(spec=spec, force=force), as_json=as_json))
        return
    refuse_mixture(given, is_job=True)
    spec_of_job = spec_of(flags, context.meta.get("engine_args", []))
    if not is_remote(source):
        check_input(Path(source))
    answer = asyncio.run(_plan_job(spec_of_job, source))
    if as_json:
        emit(answer)
    else:
        plan_report.show(answer)


async def _plan_job(spec: JobSpec, source: str) -> PlanAnswer:
    async with connect() as client:
        if is_remote(source):
            return await client.plan(spec.model_copy(update={"input_url": source}))
        path = Path(source)
        with upload_display(path) as on_bytes:
            file = await client.upload(path, on_bytes)
        try:
            return await client.plan(spec.model_copy(update={"input_file_id": file.id}))
        finally:
            # The file was uploaded to be counted; a plan leaves nothing behind.
            with suppress(TandemnError):
                await client.delete_file(file.id)


async def _plan_deployment(request: DeploymentRequest, *, as_json: bool) -> None:
    async with connect() as client:
        answer = await client.plan_deployment(request)
    if as_json:
        emit(answer)
        return
    say(deployment_report.plan_lines(answer))
    if answer.options:
        heads = list(answer.options[0])
        rows = [
            ["unknown" if row[head] is None else str(row[head]) for head in heads] for row in answer.options
        ]
        say(["", *table(heads, rows)])


@app.command("quota")
def quota(
    *,
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Only this region; repeatable.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Show AWS's vCPU quotas by region, family and market, and what of them is in use.

    Examples:
        tandemn quota
        tandemn quota --region us-east-1 --json
    """

    async def read() -> None:
        async with connect() as client:
            answer = await client.quota(region or [])
        if as_json:
            emit(answer)
            return
        heads = ("region", "family", "market", "limit", "used", "free")
        rows = [
            (
                each.region,
                each.family,
                each.market,
                *map(str, (each.limit_vcpus, each.used_vcpus, each.free_vcpus)),
            )
            for each in answer.quotas
        ]
        say(table(heads, rows))

    asyncio.run(read())
