"""The IAM policy of deploy/aws names the calls that SkyPilot's own source makes to AWS, and no others."""

from __future__ import annotations

import json
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from tests.skypilot.slurm import PYTHON

pytestmark = pytest.mark.skypilot

POLICY = json.loads((Path(__file__).parents[2] / "deploy" / "aws" / "skypilot-policy.json").read_text())
#: What boto3's resources call beneath names that are no operation's.
OF_RESOURCES = {
    r"\.create_instances\(": "ec2:RunInstances",
    r"instances\.terminate\(": "ec2:TerminateInstances",
    r"instances\.stop\(": "ec2:StopInstances",
    r"\.authorize_ingress\(": "ec2:AuthorizeSecurityGroupIngress",
    r"\bsg\.delete\(": "ec2:DeleteSecurityGroup",
    r"profile\.load\(": "iam:GetInstanceProfile",
    r"profile\.add_role\(": "iam:AddRoleToInstanceProfile",
    r"role\.load\(": "iam:GetRole",
    r"role\.attach_policy\(": "iam:AttachRolePolicy",
    r"role\.Policy\(.*\)\.put\(": "iam:PutRolePolicy",
}
#: Not for what we launch: machines side by side on a fast network, buckets. And one that everybody may call.
NOT_OURS = {"ec2:CreatePlacementGroup", "ec2:DeletePlacementGroup", "s3:ListBuckets", "sts:GetCallerIdentity"}
#: No calls, and needed: an instance is given its role by RunInstances, an account's first spot instance makes another.
BESIDE = {"iam:PassRole", "iam:CreateServiceLinkedRole"}


def called() -> set[str]:
    where = "import sky, pathlib; print(pathlib.Path(sky.__file__).parent)"
    done = subprocess.run([PYTHON, "-c", where], capture_output=True, text=True, check=True)
    root = Path(done.stdout.strip())
    files = [
        *(root / "provision" / "aws").glob("*.py"),
        root / "clouds" / "aws.py",
        root / "catalog" / "aws_catalog.py",
    ]
    source = "\n".join(path.read_text() for path in files)
    found = {action for pattern, action in OF_RESOURCES.items() if re.search(pattern, source)}
    assert found == set(OF_RESOURCES.values()), "SkyPilot calls something by another name now"
    session = botocore.session.get_session()
    for service, prefix in (
        ("ec2", "ec2"),
        ("iam", "iam"),
        ("sts", "sts"),
        ("s3", "s3"),
        ("service-quotas", "servicequotas"),
    ):
        for operation in session.get_service_model(service).operation_names:
            if re.search(rf"\.{xform_name(operation)}\b", source):
                found.add(f"{prefix}:{operation}")
    return found


def test_the_policy_is_what_skypilot_calls():
    allowed = {
        action
        for each in POLICY["Statement"]
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    needed = called() - NOT_OURS
    assert {each for each in needed if not any(fnmatch(each, pattern) for pattern in allowed)} == set()
    unused = {pattern for pattern in allowed if not any(fnmatch(each, pattern) for each in needed)}
    assert unused == BESIDE
