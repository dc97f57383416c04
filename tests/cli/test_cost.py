from decimal import Decimal

from tests.fakes.user_api import completed, job_status

from tandemn.protocol.cost import CostView, FigureView, PartView
from tandemn.protocol.jobs import CostReport, JobCostRow, JobState

SPENT = CostView(
    usd=Decimal("1.25"),
    at_least_usd=Decimal("1.25"),
    label="metered",
    parts=[
        PartView(
            part="spot",
            usd=Decimal("1.25"),
            at_least_usd=Decimal("1.25"),
            label="metered",
            running=2,
            seconds=3600,
        )
    ],
    usd_per_hour=Decimal("2.5"),
    since=1_800_000_000.0,
    usd_per_million_tokens=Decimal("0.05"),
    planned_usd=Decimal(2),
    budget_usd=Decimal(5),
    left_out=["storage"],
)
UNKNOWN = CostView(at_least_usd=Decimal("0.5"), usd=None, unknown=1, label="metered", usd_per_hour=None)


def test_one_job_by_part(plane, tandemn):
    plane.jobs["job-1"] = [job_status(cost_usd="1.25", cost=SPENT.model_dump())]
    out = tandemn("cost", "job-1").out
    assert "spent     $1.25 metered\n" in out
    assert "now       $2.50 an hour\n" in out
    assert "tokens    $0.0500 per million\n" in out
    assert "planned   $2.00 estimated\n" in out
    assert "budget    $5.00\n" in out
    assert "left out  storage\n" in out
    assert "spot  $1.25  metered  2        1h" in out
    value = tandemn("cost", "job-1", "--json").json
    assert (value["job_id"], value["usd"], value["label"]) == ("job-1", 1.25, "metered")
    assert value["parts"][0]["part"] == "spot"


def test_unknown_is_not_nothing(plane, tandemn):
    plane.jobs["job-1"] = [job_status(cost=UNKNOWN.model_dump())]
    assert "spent     unknown (at least $0.5000; 1 of unknown price) metered" in tandemn("cost", "job-1").out
    assert "cost      unknown (at least $0.5000" in tandemn("status", "job-1").out
    assert tandemn("cost", "job-1", "--json").json["usd"] is None


def test_status_and_final_report_set_it_against_plan_and_budget(plane, tandemn):
    plane.jobs["job-1"] = [job_status(cost_usd="1.25", cost=SPENT.model_dump())]
    line = "cost      $1.25 metered, planned $2.00, budget $5.00, $2.50 an hour now\n"
    assert line in tandemn("status", "job-1").out
    over = SPENT.model_copy(update={"usd_per_hour": Decimal(0)}).model_dump()
    plane.jobs["job-2"] = [completed("job-2", "over_budget", cost=over, code="over_budget", reason="reached")]
    result = tandemn("progress", "job-2")
    assert result.code == 3
    assert "cost      $1.25 metered, planned $2.00, budget $5.00\n" in result.out


def test_everything_with_its_total(plane, tandemn):
    plane.cost = CostReport(
        jobs=[
            JobCostRow(job_id="job-2", state=JobState.RUNNING, model="m", created_at=2, cost=SPENT),
            JobCostRow(job_id="job-1", state=JobState.FAILED, model="m", created_at=1, cost=UNKNOWN),
        ],
        jobs_total=7,
        total=FigureView(usd=None, at_least_usd=Decimal(9), unknown=1, label="metered"),
        usd_per_hour=Decimal("2.5"),
        left_out=["storage", "network traffic"],
    )
    out = tandemn("cost").out.splitlines()
    assert out[0].split()[:4] == ["JOB", "STATE", "MODEL", "SPENT"]
    assert out[1].split()[:5] == ["job-2", "running", "m", "$1.25", "metered"]
    assert "unknown (at least $0.5000" in out[2]
    assert out[4:] == [
        "total     unknown (at least $9.00; 1 of unknown price) metered, $2.50 an hour now",
        "          of 7 jobs, 2 shown",
        "left out  storage, network traffic",
    ]
    assert tandemn("cost", "--json").json["total"]["usd"] is None
    assert plane.called("GET", "/api/cost")[-1] == {"limit": "50"}


def test_a_control_plane_that_does_not_say(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    result = tandemn("cost", "job-1")
    assert result.code == 1
    assert "[cost_unavailable]" in result.err
