import asyncio

from aiohttp import web

from tandemn.clock import MockClock
from tandemn.runner import notices


def test_a_notice_is_read_with_its_time():
    notice = notices.parse(b'{"action": "stop", "time": "2026-11-21T08:22:00Z"}', now=0)
    assert (notice.action, notice.at) == ("stop", 1795249320.0)


def test_what_cannot_be_read_still_is_a_notice():
    for body in (b"", b"terminate", b'{"time": "soon"}', b"[]", b"{}"):
        assert notices.parse(body, now=100).at == 100 + notices.UNKNOWN_S


async def test_the_metadata_service_is_asked_with_a_token_until_it_announces():
    asked = []

    async def token(request):
        asked.append("token")
        assert int(request.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        return web.Response(text=f"token-{len(asked)}")

    async def action(request):
        asked.append(request.headers["X-aws-ec2-metadata-token"])
        match len(asked):
            case 2:
                return web.Response(status=404)
            case 3:
                return web.Response(status=401)
        return web.Response(text='{"action": "terminate", "time": "2026-11-21T08:22:00Z"}')

    app = web.Application()
    app.router.add_put("/latest/api/token", token)
    app.router.add_get("/latest/meta-data/spot/instance-action", action)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with asyncio.timeout(10):
            notice = await notices.spot_notice(url, MockClock(), poll_s=0.01)
    finally:
        await runner.cleanup()
    assert notice.action == "terminate"
    assert asked == ["token", "token-1", "token-1", "token", "token-4"]
