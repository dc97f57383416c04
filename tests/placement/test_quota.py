import builtins

import boto3.session
import pytest
from tests.fakes.aws_quotas import LIMITS, Wired, aws_account, launch, service_quotas

from tandemn.clock import MockClock
from tandemn.errors import MissingDependency, NotAllowed, Retryable
from tandemn.placement import quota as quota_module
from tandemn.placement.quota import CACHE_S, QuotaReader, as_rows, free_vcpus, quota_family


@pytest.fixture
def aws():
    with aws_account() as session:
        yield session


@pytest.fixture
def wired(aws):
    with service_quotas(LIMITS) as url:
        yield Wired(aws, url)


def test_quota_minus_use(wired, aws):
    launch(aws, "g5.2xlarge")
    launch(aws, "p3.2xlarge")
    read = {(q.family, q.market): q for q in QuotaReader(MockClock(), wired).read(["us-east-1"])}
    assert (read["G", "on-demand"].limit, read["G", "on-demand"].used, read["G", "on-demand"].free) == (
        96,
        8,
        88,
    )
    assert (read["P", "on-demand"].limit, read["P", "on-demand"].free) == (0, 0)
    assert read["G", "spot"].free == 64
    assert ("P", "spot") not in read, "what is not told does not limit"


def test_a_region_without_ec2_quotas_does_not_limit(aws):
    assert QuotaReader(MockClock(), aws).read(["us-east-1"]) == ()


def test_use_is_counted_by_family_and_market(aws):
    launch(aws, "g5.2xlarge")
    launch(aws, "p3.2xlarge")
    launch(aws, "m5.large")
    used = quota_module._used(aws.client("ec2", region_name="us-east-1"))
    assert sum(used.values()) == 16
    assert {family for family, _ in used} == {"G", "P"}


def test_a_reading_is_kept_for_a_while(wired):
    clock = MockClock()
    reader = QuotaReader(clock, wired)
    reader.read(["us-east-1", "us-east-1"])
    reader.read(["us-east-1"])
    assert wired.regions == ["us-east-1"]
    clock.advance(CACHE_S)
    reader.read(["us-east-1"])
    assert wired.regions == ["us-east-1"] * 2


def test_rows_and_limits():
    quotas = [
        quota_module.Quota(region="b", family="G", market="spot", limit=8, used=12, code="x"),
        quota_module.Quota(region="a", family="P", market="spot", limit=8, used=0, code="y"),
    ]
    assert free_vcpus(quotas) == {("b", "G", "spot"): 0, ("a", "P", "spot"): 8}
    assert [row["region"] for row in as_rows(quotas)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "market", "family"),
    [
        ("g6e.xlarge", "spot", "G"),
        ("p5.48xlarge", "spot", "P5"),
        ("p5.48xlarge", "on-demand", "P"),
        ("p4d.24xlarge", "spot", "P"),
        ("m5.large", "spot", None),
    ],
)
def test_families(name, market, family):
    assert quota_family(name, market) == family


def test_without_boto3_the_pip_line_is_named(monkeypatch):
    real = builtins.__import__

    def no_boto3(name, *args, **kwargs):
        if name.startswith("boto3"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_boto3)
    with pytest.raises(MissingDependency, match="tandemn\\[aws\\]"):
        QuotaReader(MockClock()).read(["us-east-1"])


def test_no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(NotAllowed):
        QuotaReader(MockClock(), boto3.session.Session()).read(["us-east-1"])


def test_a_region_that_does_not_answer(monkeypatch):
    class Silent:
        def client(self, name, *, region_name, config):
            session = boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="y")
            return session.client(
                name, region_name=region_name, config=config, endpoint_url="http://127.0.0.1:9"
            )

    with pytest.raises(Retryable):
        QuotaReader(MockClock(), Silent()).read(["us-east-1"])
