"""Each of SkyPilot's errors, by what the caller can do."""

import pytest

from tandemn.errors import (
    Broken,
    Conflict,
    InvalidInput,
    NextOffer,
    NoCapacity,
    NotAllowed,
    NotFound,
    QuotaExceeded,
    Retryable,
)
from tandemn.skypilot.faults import translated


def error(kind, *bases, message="so it is", history=(), detail=""):
    told = [{"type": "ResourcesUnavailableError", "message": each} for each in history]
    return {"type": kind, "kinds": [kind, *bases], "message": message, "history": told, "detail": detail}


@pytest.mark.parametrize(
    ("kind", "bases", "expected", "code"),
    [
        ("ResourcesUnavailableError", ["Exception"], NextOffer, "offer_unavailable"),
        ("ProvisionUnsupportedError", ["Exception"], NextOffer, "offer_unsupported"),
        ("NotSupportedError", ["Exception"], NextOffer, "offer_unsupported"),
        ("NoCloudAccessError", ["Exception"], InvalidInput, "cloud_credentials"),
        ("InvalidCloudCredentials", ["Exception"], InvalidInput, "cloud_credentials"),
        ("ClusterOwnerIdentityMismatchError", ["Exception"], NotAllowed, "cluster_owner"),
        ("ResourcesMismatchError", ["Exception"], Conflict, "cluster_mismatch"),
        (
            "KubeAPIUnreachableError",
            ["ResourcesUnavailableError", "Exception"],
            Retryable,
            "skypilot_unavailable",
        ),
        ("InvalidCloudConfigs", ["Exception"], InvalidInput, "cloud_credentials"),
        ("CloudUserIdentityError", ["Exception"], InvalidInput, "cloud_credentials"),
        ("PermissionDeniedError", ["Exception"], NotAllowed, "skypilot_access"),
        ("ProvisionPrechecksError", ["Exception"], InvalidInput, "skypilot_refused"),
        ("UserRequestRejectedByPolicy", ["Exception"], InvalidInput, "skypilot_refused"),
        ("ClusterSetUpError", ["Exception"], Broken, "cluster_setup_failed"),
        ("ClusterNotUpError", ["Exception"], Retryable, "skypilot_unavailable"),
        ("ServerTemporarilyUnavailableError", ["Exception"], Retryable, "skypilot_unavailable"),
        ("RequestInterruptedError", ["Exception"], Retryable, "skypilot_unavailable"),
        ("CommandError", ["CommandFailureException", "Exception"], Broken, "cluster_setup_failed"),
        ("ClusterDoesNotExist", ["ValueError", "Exception"], NotFound, "cluster_not_found"),
        ("ClusterStatusFetchingError", ["Exception"], Retryable, "skypilot_unavailable"),
        ("ApiServerConnectionError", ["RuntimeError", "Exception"], Retryable, "skypilot_unavailable"),
        ("ApiServerAuthenticationError", ["RuntimeError", "Exception"], NotAllowed, "skypilot_access"),
        ("APIVersionMismatchError", ["RuntimeError", "Exception"], Conflict, "skypilot_version"),
        ("StorageUploadError", ["StorageError", "Exception"], Retryable, "skypilot_unavailable"),
        ("InvalidSkyPilotConfigError", ["ValueError", "Exception"], InvalidInput, "skypilot_refused"),
        ("RequestCancelled", ["Exception"], Retryable, "request_cancelled"),
        ("RuntimeError", ["Exception"], Retryable, "skypilot_failed"),
        ("SomethingNew", ["Exception"], Retryable, "skypilot_failed"),
    ],
)
def test_meaning(kind, bases, expected, code):
    found = translated(error(kind, *bases))
    assert type(found) is expected
    assert found.code == code
    assert "so it is" in found.message


def test_what_was_tried_is_told_once_each():
    found = translated(
        error(
            "ResourcesUnavailableError",
            history=["no L4 in us-east-1a", "no L4 in us-east-1b", "no L4 in us-east-1a"],
        )
    )
    assert type(found) is NoCapacity
    assert found.message.count("us-east-1a") == 1
    assert "us-east-1b" in found.message


def test_a_quota_everywhere_is_a_quota_and_a_capacity_anywhere_is_none():
    quota = "You have exceeded your vCPU limit (VcpuLimitExceeded)"
    assert type(translated(error("ResourcesUnavailableError", history=[quota, quota]))) is QuotaExceeded
    assert type(translated(error("ResourcesUnavailableError", history=[quota, "no capacity"]))) is NoCapacity


def test_what_was_asked_for_is_not_told_with_every_place():
    places = [
        f"Failed to acquire resources in {zone} for {{AWS(g6.xlarge[Spot], {{'L4': 1}})}}." for zone in "ab"
    ]
    found = translated(error("ResourcesUnavailableError", history=places))
    assert found.message.endswith("Failed to acquire resources in a; Failed to acquire resources in b")


def test_colours_and_excess_are_left_out():
    found = translated(error("RuntimeError", message="\x1b[31mred\x1b[0m\n" + "x" * 5000))
    assert "\x1b" not in found.message
    assert "red" in found.message
    assert len(found.message) < 700


def test_a_failed_command_tells_its_detail():
    found = translated(error("CommandError", "CommandFailureException", detail="No space left on device"))
    assert "No space left on device" in found.message
