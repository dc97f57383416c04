"""`tandemn check` and `tandemn gc`: does everything answer, and what is left over at the providers."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tandemn import __version__
from tandemn.cli import options
from tandemn.cli.connection import connect
from tandemn.cli.output import emit, note, say
from tandemn.cli.text import plural, printable, table
from tandemn.errors import NotFound, TandemnError
from tandemn.protocol.upkeep import CheckReport, CheckState, CheckView, CollectRequest, StrayReport

app = typer.Typer(rich_markup_mode=None)


@app.command("check")
def check(
    *,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Only this provider, which must be set up.")
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Check server, key, version, database, Redis, object store, and who is signed in at each provider.

    A provider that is not set up is no failure, unless it is named. Exit code 1: something failed.

    Examples:
        tandemn check
        tandemn check --provider modal --json
    """
    report = asyncio.run(_check(provider))
    if as_json:
        emit(report)
    else:
        rows = [(each.name, each.state.value, each.detail) for each in report.checks]
        say(table(("check", "", ""), rows))
        note(
            f"{each.name}: {printable(each.next_step)}"
            for each in report.checks
            if each.next_step is not None and each.state is CheckState.FAILED
        )
    return 1 if any(each.state is CheckState.FAILED for each in report.checks) else 0


async def _check(provider: str | None) -> CheckReport:
    try:
        async with connect() as client:
            server = await client.server()
            found = await client.check(provider)
    except TandemnError as exc:
        if exc.code == "unknown_provider":
            raise  # wrong usage, and no news of the server
        # Which of them it was, its code says: no server, another version, a key that is not taken.
        failed = CheckView(
            name="server",
            state=CheckState.FAILED,
            detail=exc.message,
            code=exc.code,
            next_step=exc.next_step,
        )
        return CheckReport(checks=[failed])
    is_same = server.version == __version__
    version = CheckView(
        name="version",
        state=CheckState.OK if is_same else CheckState.FAILED,
        detail=f"{server.version}" if is_same else f"the server's is {server.version}, this is {__version__}",
        code=None if is_same else "version_mismatch",
        next_step=None if is_same else "install the same version on both sides",
    )
    answered = CheckView(name="server", state=CheckState.OK, detail=server.url)
    key = CheckView(name="key", state=CheckState.OK, detail="taken" if client.key else "none is asked for")
    return CheckReport(checks=[answered, key, version, *found.checks])


@app.command("gc")
def gc(
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]", help="Only these, by the names that they have at their providers."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; without it they are only shown.")] = False,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> int:
    """Find what providers have under Tandemn's names and no record knows; --yes deletes it.

    Deployments of another control plane on the same accounts have no record here either: look before you say
    --yes, or name what is to go.

    Examples:
        tandemn gc
        tandemn gc tandemn-chat --yes
    """
    report = asyncio.run(_gc(names or [], is_deleting=yes))
    if as_json:
        emit(report)
    else:
        _show(report, is_deleting=yes)
    return 1 if yes and not all(each.is_gone for each in report.strays) else 0


async def _gc(names: list[str], *, is_deleting: bool) -> StrayReport:
    async with connect() as client:
        found = await client.strays()
        if names:
            missing = sorted(set(names) - {each.remote_name for each in found.strays})
            if missing:
                raise NotFound(
                    f"no provider has something of the name {', '.join(missing)} without a record here",
                    code="stray_not_found",
                    next_step="`tandemn gc` lists what there is",
                )
            strays = [each for each in found.strays if each.remote_name in names]
            found = found.model_copy(update={"strays": strays})
        if not is_deleting or not found.strays:
            return found
        request = CollectRequest(remote_names=sorted({each.remote_name for each in found.strays}))
        return await client.collect(request)


def _show(report: StrayReport, *, is_deleting: bool) -> None:
    for where, reason in report.unread.items():
        note(f"not asked: {where}: {printable(reason)}")
    if report.not_set_up:
        note(f"not asked, because nobody is signed in: {', '.join(report.not_set_up)}")
    if not report.strays:
        say("nothing without a record")
        return
    heads = ("name", "kind", "provider", "place", "")
    rows = [
        (
            each.remote_name,
            each.kind,
            each.provider,
            each.place or "",
            "" if not is_deleting else "gone" if each.is_gone else f"still there: {each.reason}",
        )
        for each in report.strays
    ]
    say(table(heads, rows))
    if not is_deleting:
        note(f"{plural(len(report.strays), 'thing')} without a record; --yes deletes what is shown")
