"""Every Prometheus metric, in one table: docs/metrics.md is written from it, and /metrics is answered from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvstore.reasons import MissReason

Kind = Literal["counter", "gauge", "histogram", "info"]
Labels = Mapping[str, tuple[str, ...] | None]


def number(value: Any) -> float | None:
    """A figure as it is; None for what is no number."""
    return float(value) if isinstance(value, int | float) else None


def share(percent: Any) -> float | None:
    """Percent as a share of 1."""
    value = number(percent)
    return None if value is None else value / 100


def is_given(reason: Any) -> float:
    """1 where there is a sentence, 0 where there is none."""
    return float(reason is not None)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, and where in the figures it comes from.

    name: as Prometheus sees it.   unit: of its values; what is counted, where there is no unit.
    source: the path in `stats()`, its keys with dots between them. `{label}` stands for any key, and the key is the
        label's value. An info's path leads to the mapping that has its labels; "" is the whole.
    labels: by name, the values that are exposed; None where these are not known beforehand (but bounded all the same).
        A counter has all values that are known from the start on, most of them 0: a rate needs two points.
    read: makes the sample of what is found; None leaves it out.
    """

    name: str
    kind: Kind
    unit: str
    source: str
    labels: Labels
    help: str
    read: Callable[[Any], float | None] = number


TIERS = ("device", "host", "disk")
TIER: Labels = {"tier": TIERS}
# "none" comes first: what was computed in full
SERVED_FROM: Labels = {"tier": ("none", *TIERS)}
REASON: Labels = {"reason": tuple(reason.value for reason in MissReason)}
DAMAGE: Labels = {"reason": tuple(reason.value for reason in MissReason if reason.damaged)}
DECISION: Labels = {"decision": ("all", "some", "none", "uncalibrated")}
OUTCOME: Labels = {"outcome": ("loaded", "computed")}
VERDICT: Labels = {"tier": ("host", "disk"), "verdict": ("admit", "reject", "throttled")}
WHY: Labels = {"tier": ("host", "disk"), "why": None, "verdict": VERDICT["verdict"]}
CODEC: Labels = {"codec": ("raw", "planes", "baseline", "huffman")}
END: Labels = {"reason": ("stop", "length", "cancelled", "timeout", "error")}
TRANSFER: Labels = {"transfer": ("demote", "promote", "swap_out", "swap_in", "read", "write")}
# tenants that have a quota of their own, at most a thousand; "" is what is no tenant's; "*" the others together
TENANT: Labels = {"tenant": None}
TENANT_TIER: Labels = {"tenant": None, "tier": None}
SLOTS: Labels = {"tier": ("device", "host"), "state": ("free", "private", "indexed", "in_flight", "retired")}
ROUTE: Labels = {"route": None, "method": None, "code": None}

# One metric is two lines, as in a table; the formatter would make eight of them.
# fmt: off
PROMPTS = (
    Metric("kvtide_prompt_tokens_total", "counter", "tokens", "engine.prompt_tokens", {},
           "Tokens of prompts that were computed."),
    Metric("kvtide_cached_tokens_total", "counter", "tokens", "engine.cached_tokens_by_tier.{tier}", TIER,
           "Prompt tokens that were not computed, by the tier in which they lay when the request was admitted."),
    Metric("kvtide_missed_tokens_total", "counter", "tokens", "engine.missed_tokens.{reason}", REASON,
           "Prompt tokens that were computed, by the reason why no tier served them."),
    Metric("kvtide_prefilled_tokens_total", "counter", "tokens", "engine.prefilled_tokens", {},
           "Tokens prefilled; those of a preempted request once more."),
    Metric("kvtide_lookup_requests_total", "counter", "requests", "cache.lookups.requests", {},
           "Requests that asked the cache for blocks."),
    Metric("kvtide_lookup_blocks_total", "counter", "blocks", "cache.lookups.blocks", {},
           "Whole blocks that requests asked for."),
    Metric("kvtide_lookup_hit_blocks_total", "counter", "blocks", "cache.lookups.hit_blocks.{tier}", TIER,
           "Blocks that requests asked for and found, by the tier in which they lay."),
    Metric("kvtide_load_decisions_total", "counter", "requests", "cache.load_or_compute.decisions.{decision}", DECISION,
           "Matches below the device, by how much of them was loaded (load=auto); uncalibrated: all, as nothing was known."),
    Metric("kvtide_load_probes_total", "counter", "requests", "cache.load_or_compute.probes", {},
           "Of these, how many were loaded only to see how fast the tier is by now."),
    Metric("kvtide_load_decided_blocks_total", "counter", "blocks", "cache.load_or_compute.blocks.{outcome}", OUTCOME,
           "Blocks that lower tiers had, by what was decided (load=auto)."),
    Metric("kvtide_load_outcomes_total", "counter", "requests", "cache.load_or_compute.ended", {},
           "Decisions whose prompt is computed, so that the prediction can be held against what it took."),
    Metric("kvtide_load_predicted_seconds_total", "counter", "seconds", "cache.load_or_compute.predicted_s", {},
           "What loading and computing of these were thought to take together."),
    Metric("kvtide_load_taken_seconds_total", "counter", "seconds", "cache.load_or_compute.took_s", {},
           "What they took."),
    Metric("kvtide_load_prediction_error_ratio", "histogram", "ratio", "cache.load_or_compute.errors", {},
           "By how much of what was predicted each of them was off, to either side."),
    Metric("kvtide_load_came_late_total", "counter", "loads", "cache.load_or_compute.came_late", {},
           "Loads from disk that came whole after their request had stopped waiting; what comes is kept."),
)

REQUESTS = (
    Metric("kvtide_requests_total", "counter", "requests", "engine.requests", {},
           "Requests that were accepted."),
    Metric("kvtide_replies_total", "counter", "replies", "engine.ended.{reason}", END,
           "Replies that have ended, by how; a request may have several."),
    Metric("kvtide_running_replies", "gauge", "replies", "engine.running", {},
           "Replies that are admitted now."),
    Metric("kvtide_waiting_replies", "gauge", "replies", "engine.waiting", {},
           "Replies that are not admitted yet, or preempted."),
    Metric("kvtide_draining", "gauge", "0 or 1", "engine.draining", {},
           "1 while the engine takes no new requests."),
    Metric("kvtide_failed", "gauge", "0 or 1", "engine.failed", {},
           "1 once the engine has failed: it ends each request with an error, and most figures stand still."),
    Metric("kvtide_ttft_seconds", "histogram", "seconds", "engine.ttft_s.{tier}", SERVED_FROM,
           "From submission to the first token, by the slowest tier that served the request; none: computed in full."),
    Metric("kvtide_queue_seconds", "histogram", "seconds", "engine.queue_s", {},
           "From submission to admission."),
    Metric("kvtide_load_seconds", "histogram", "seconds", "engine.load_s", {},
           "From admission until the last cached block was on the device."),
    Metric("kvtide_steps_total", "counter", "steps", "engine.steps", {},
           "Forward passes."),
    Metric("kvtide_generated_tokens_total", "counter", "tokens", "engine.generated_tokens", {},
           "Tokens of replies."),
    Metric("kvtide_forked_replies_total", "counter", "replies", "engine.forked_replies", {},
           "Replies that took over a computed prompt."),
    Metric("kvtide_early_prefills_total", "counter", "prefills", "engine.early_prefills", {},
           "Prompts that were computed while later layers of their blocks were on their way."),
    Metric("kvtide_void_prefills_total", "counter", "prefills", "engine.void_prefills", {},
           "Of these, how many were computed again, as the later layers did not come."),
    Metric("kvtide_preemptions_total", "counter", "requests", "cache.preempted.requests", {},
           "How often a request gave up its room."),
    Metric("kvtide_swapped_out_blocks_total", "counter", "blocks", "cache.preempted.swapped_out_blocks", {},
           "Blocks of preempted requests that were copied to host memory."),
    Metric("kvtide_swapped_in_blocks_total", "counter", "blocks", "cache.preempted.swapped_in_blocks", {},
           "Blocks of preempted requests that came back."),
)

CONTENT = (
    Metric("kvtide_blocks", "gauge", "blocks", "cache.blocks", {},
           "Blocks in the index, in whatever tiers."),
    Metric("kvtide_leases", "gauge", "leases", "cache.leases", {},
           "Requests that hold a path of blocks."),
    Metric("kvtide_block_bytes", "gauge", "bytes", "cache.block_bytes", {},
           "Size of one block in memory."),
    Metric("kvtide_block_tokens", "gauge", "tokens", "cache.block_tokens", {},
           "Tokens of one block."),
    Metric("kvtide_slots", "gauge", "slots", "cache.tiers.{tier}.{state}", SLOTS,
           "Slots by state: free, private (one request's own), indexed (cached), in flight (being filled), retired (taken out of service)."),
    Metric("kvtide_evicted_blocks_total", "counter", "blocks", "cache.tiers.{tier}.evicted", TIER,
           "Copies that left the tier to make room there."),
    Metric("kvtide_dropped_blocks_total", "counter", "blocks", "cache.tiers.{tier}.dropped", TIER,
           "Blocks whose last copy was given up in the tier, with those below them."),
    Metric("kvtide_not_admitted_blocks_total", "counter", "blocks", "cache.tiers.{tier}.not_admitted", TIER,
           "Of these, how many were not thought worth a place in the tier below."),
    Metric("kvtide_admission_verdicts_total", "counter", "blocks", "cache.admission.{tier}.verdicts.{verdict}", VERDICT,
           "Blocks that might have been copied down to the tier, by what the admission said; one that others follow may go down although it is rejected."),
    Metric("kvtide_admission_reasons_total", "counter", "blocks", "cache.admission.{tier}.reasons.{why}.{verdict}", WHY,
           "The same by the condition that was heard."),
    Metric("kvtide_expired_blocks_total", "counter", "blocks", "cache.expired", {},
           "Blocks that were forgotten because nobody had used them for the TTL."),
    Metric("kvtide_named_caches", "gauge", "caches", "cache.retention.names", {},
           "Named caches that there are."),
    Metric("kvtide_held_blocks", "gauge", "blocks", "cache.retention.held_blocks.{tier}", TIER,
           "Blocks that named caches and keep hold in the tier."),
    Metric("kvtide_expired_names_total", "counter", "caches", "cache.retention.expired_names", {},
           "Named caches that were over."),
    Metric("kvtide_holds_gave_way_total", "counter", "holds", "cache.retention.gave_way", {},
           "Holds that were let go so that a request could run."),
    Metric("kvtide_removed_blocks_total", "counter", "blocks", "cache.removed", {},
           "Blocks that somebody had removed."),
    Metric("kvtide_tenant_used_bytes", "gauge", "bytes", "engine.tenants.{tenant}.used_bytes.{tier}", TENANT_TIER,
           "What a tenant has in a tier, if it has a quota of its own; * is all others together."),
    Metric("kvtide_tenant_evicted_copies_total", "counter", "copies", "engine.tenants.{tenant}.evicted_copies", TENANT,
           "Copies of a tenant's blocks that left a tier to make room there."),
    Metric("kvtide_tenant_evictions_asked_total", "counter", "copies", "engine.tenants.{tenant}.evictions_asked", TENANT,
           "Copies of anybody's blocks that left while room was made for a tenant."),
    Metric("kvtide_departed_entries", "gauge", "entries", "cache.departed", {},
           "What is remembered of blocks that went, to say why a prompt missed."),
    Metric("kvtide_events_total", "counter", "events", "cache.events", {},
           "Number of the latest event of GET /admin/v1/events."),
)

TRANSFERS = (
    Metric("kvtide_transfer_moves_total", "counter", "moves", "cache.transfers.{transfer}.moves", TRANSFER,
           "Moves that have ended."),
    Metric("kvtide_transfer_blocks_total", "counter", "blocks", "cache.transfers.{transfer}.blocks", TRANSFER,
           "Blocks that were moved."),
    Metric("kvtide_transfer_bytes_total", "counter", "bytes", "cache.transfers.{transfer}.bytes", TRANSFER,
           "Bytes that were moved; of read and write after compression."),
    Metric("kvtide_transfer_busy_seconds_total", "counter", "seconds", "cache.transfers.{transfer}.busy_s", TRANSFER,
           "Time from asking for a move to its end, summed over moves; two at once count twice."),
    Metric("kvtide_transfer_failed_blocks_total", "counter", "blocks", "cache.transfers.{transfer}.failed_blocks", TRANSFER,
           "Blocks that a move was to bring and did not."),
    Metric("kvtide_transfer_in_flight_blocks", "gauge", "blocks", "cache.transfers.{transfer}.in_flight_blocks", TRANSFER,
           "Blocks that are being moved now."),
    Metric("kvtide_failed_load_blocks_total", "counter", "blocks", "cache.failed_loads.{reason}", REASON,
           "Blocks that a request waited for and that did not arrive; they were computed."),
)

DISK = (
    Metric("kvtide_tier_ready", "gauge", "0 or 1", "cache.tiers.{tier}.ready", TIER,
           "0 without a disk, and while nothing is read or nothing is written there; of the disk only."),
    Metric("kvtide_disk_off", "gauge", "0 or 1", "disk_off", {},
           "1 where disk_path is set and there is no disk tier all the same.", read=is_given),
    Metric("kvtide_disk_blocks", "gauge", "blocks", "cache.tiers.disk.blocks", {},
           "Blocks on disk."),
    Metric("kvtide_disk_used_bytes", "gauge", "bytes", "cache.tiers.disk.bytes", {},
           "What records take, after compression, in pages, with what writes in flight may take."),
    Metric("kvtide_disk_capacity_bytes", "gauge", "bytes", "cache.tiers.disk.capacity_bytes", {},
           "What records may take of disk_bytes, less what other namespaces have."),
    Metric("kvtide_disk_writing_blocks", "gauge", "blocks", "cache.tiers.disk.writing_blocks", {},
           "Blocks that wait to be written, or are being written."),
    Metric("kvtide_disk_restoring", "gauge", "0 or 1", "cache.tiers.disk.restoring", {},
           "1 after the start, until the index knows what the disk holds."),
    Metric("kvtide_disk_found_blocks", "gauge", "blocks", "cache.tiers.disk.found_blocks", {},
           "Blocks that were found on disk at the start, once they were listed."),
    Metric("kvtide_disk_restored_blocks", "gauge", "blocks", "cache.tiers.disk.restored_blocks", {},
           "Of these, those that were entered into the index, or could not be."),
    Metric("kvtide_disk_overdue_reads", "gauge", "reads", "cache.tiers.disk.overdue_reads", {},
           "Reads that have taken too long and are not over."),
    Metric("kvtide_disk_failed_write_blocks_total", "counter", "blocks", "cache.tiers.disk.failed_writes", {},
           "Blocks whose write failed."),
    Metric("kvtide_disk_written_bytes_total", "counter", "bytes", "cache.tiers.disk.written_bytes", {},
           "Bytes written, after compression."),
    Metric("kvtide_disk_read_bytes_total", "counter", "bytes", "cache.tiers.disk.read_bytes", {},
           "Bytes read for requests, after compression."),
    Metric("kvtide_failed_deletes_total", "counter", "records", "cache.failed_deletes", {},
           "Records that could not be deleted; they take space until the next start."),
    Metric("kvtide_failed_touches_total", "counter", "blocks", "cache.failed_touches", {},
           "Blocks of which the disk could not be told the last use."),
    Metric("kvtide_failed_terms_total", "counter", "writes", "cache.failed_terms", {},
           "Times that the disk could not be told how long blocks live, or that a named cache is over."),
    Metric("kvtide_store_blocks", "gauge", "blocks", "cache.store.blocks", {},
           "Records of this namespace."),
    Metric("kvtide_store_stored_bytes", "gauge", "bytes", "cache.store.stored_bytes", {},
           "What these records take."),
    Metric("kvtide_store_raw_bytes", "gauge", "bytes", "cache.store.raw_bytes", {},
           "What their blocks are when decoded."),
    Metric("kvtide_store_capacity_bytes", "gauge", "bytes", "cache.store.capacity_bytes", {},
           "What records of all namespaces may take together."),
    Metric("kvtide_store_other_namespaces_bytes", "gauge", "bytes", "cache.store.other_namespaces_bytes", {},
           "What records of other namespaces take."),
    Metric("kvtide_store_written_records_total", "counter", "records", "cache.store.written.{codec}", CODEC,
           "Records that were packed to be written, by how their blocks are encoded."),
    Metric("kvtide_store_encodes", "gauge", "0 or 1", "cache.store.encodes", {},
           "1 while blocks are encoded where that gains, 0 where they are written as they are."),
    Metric("kvtide_store_damaged_records_total", "counter", "records", "cache.store.damaged.{reason}", DAMAGE,
           "Records that failed a check when they were read, by the check."),
    Metric("kvtide_store_fresh_starts_total", "counter", "starts", "cache.store.fresh_starts", {},
           "How often LMDB itself failed and the store went on empty."),
)

GPU = (
    Metric("kvtide_gpu_info", "info", "", "gpu", {"name": None, "driver": None},
           "The card that the model runs on."),
    Metric("kvtide_gpu_memory_used_bytes", "gauge", "bytes", "gpu.memory_used_bytes", {},
           "The card's memory that all processes and the driver take."),
    Metric("kvtide_gpu_memory_capacity_bytes", "gauge", "bytes", "gpu.memory_total_bytes", {},
           "The card's memory."),
    Metric("kvtide_gpu_utilization_ratio", "gauge", "ratio", "gpu.utilization_percent", {},
           "Share of the time since NVML last looked in which some kernel ran.", read=share),
    Metric("kvtide_gpu_pcie_read_bytes_per_second", "gauge", "bytes per second", "gpu.pcie.read_bytes_per_s", {},
           "What the card receives over PCIe (promotion), over 20 ms."),
    Metric("kvtide_gpu_pcie_written_bytes_per_second", "gauge", "bytes per second", "gpu.pcie.written_bytes_per_s", {},
           "What the card sends over PCIe (demotion), over the same 20 ms."),
    Metric("kvtide_gpu_pcie_generation", "gauge", "generation", "gpu.pcie.generation", {},
           "Of the link as it is now; slower while the card idles."),
    Metric("kvtide_gpu_pcie_max_generation", "gauge", "generation", "gpu.pcie.max_generation", {},
           "The best that card and machine can have together."),
    Metric("kvtide_gpu_pcie_width", "gauge", "lanes", "gpu.pcie.width", {},
           "Of the link as it is now."),
    Metric("kvtide_gpu_pcie_max_width", "gauge", "lanes", "gpu.pcie.max_width", {},
           "The best that card and machine can have together."),
    Metric("kvtide_gpu_power_watts", "gauge", "watts", "gpu.power_w", {},
           "What the card draws."),
    Metric("kvtide_gpu_power_limit_watts", "gauge", "watts", "gpu.power_limit_w", {},
           "What the card may draw."),
    Metric("kvtide_gpu_temperature_celsius", "gauge", "celsius", "gpu.temperature_c", {},
           "How hot the card is."),
)

PROGRAM = (
    Metric("kvtide_build_info", "info", "", "build", {"version": None, "python": None},
           "The version of kvtide, and of Python."),
    Metric("kvtide_engine_info", "info", "", "", {"attention": None},
           "Who computes attention: flashinfer or sdpa."),
    Metric("kvtide_http_requests_total", "counter", "requests", "http.requests.{route}.{method}.{code}", ROUTE,
           "Requests to the admin endpoint that were answered. A route is written with its placeholders."),
    Metric("kvtide_http_listeners", "gauge", "listeners", "http.listeners", {},
           "Connections that listen to events now."),
    Metric("kvtide_http_running_jobs", "gauge", "jobs", "http.running_jobs", {},
           "Jobs of the endpoint that run now."),
)

# fmt: on

SECTIONS = {
    "Prompts": PROMPTS,
    "Requests": REQUESTS,
    "Tiers": CONTENT,
    "Transfers": TRANSFERS,
    "Disk": DISK,
    "GPU": GPU,
    "Program and endpoint": PROGRAM,
}

METRICS = tuple(metric for section in SECTIONS.values() for metric in section)
