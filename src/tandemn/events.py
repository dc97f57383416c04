"""What happened, as facts: progress, cost and the dashboard are folds over these."""

from __future__ import annotations

from enum import StrEnum


class EventKind(StrEnum):
    """Every kind of event; docs/events.md says what each carries."""

    JOB_SUBMITTED = "job_submitted"
    JOB_PLANNED = "job_planned"
    JOB_STATE = "job_state"
    BUDGET_REACHED = "budget_reached"
    JOB_SEALED = "job_sealed"
    JOB_ENDED = "job_ended"
    QUEUE_REBUILT = "queue_rebuilt"
    REPLICA_REQUESTED = "replica_requested"
    REPLICA_LAUNCHED = "replica_launched"
    REPLICA_READY = "replica_ready"
    REPLICA_BEGAN = "replica_began"
    REPLICA_ORDERED = "replica_ordered"
    REPLICA_ENDED = "replica_ended"
    ENGINE_DIED = "engine_died"
    REPLICAS_ADDED = "replicas_added"
    REPLICAS_KILLED = "replicas_killed"
    SWAP_BEGAN = "swap_began"
    SWAP_DRAINING = "swap_draining"
    SWAP_ENDED = "swap_ended"
    CHUNK_COMPLETED = "chunk_completed"
    CHUNK_REFUSED = "chunk_refused"
    LEADER_ELECTED = "leader_elected"
    DEPLOYMENT_SUBMITTED = "deployment_submitted"
    DEPLOYMENT_UPDATED = "deployment_updated"
    DEPLOYMENT_STATE = "deployment_state"
    DEPLOYMENT_DELETING = "deployment_deleting"
    KEY_ROTATED = "key_rotated"
    BACKEND_STATE = "backend_state"
    BACKEND_REPLICAS = "backend_replicas"
    ROUTER_STATE = "router_state"
    TABLE_PUSHED = "table_pushed"
