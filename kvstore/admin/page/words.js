// What the cache's words mean, for people who did not write it.

export const TIERS = ["device", "host", "disk"];
export const TIER_TEXT = {
  device: "Device",
  host: "Host memory",
  disk: "Disk",
};

/** reason: [label, sentence]. Reasons that are not here are shown as they are. */
const REASONS = {
  absent: ["Not there", "Nothing rests under the key."],
  never_seen: ["Never seen", "No prompt that began like this has been computed here, as far as is remembered."],
  differs: ["Differs", "What is cached goes on with other tokens."],
  evicted: ["Evicted", "It was cached and had to go for want of room. More host memory or disk would have kept it."],
  not_admitted: ["Not kept", "It was not thought worth a place in the next tier."],
  over_quota: ["Over its quota", "It had to go for want of room, as its tenant had more than its part."],
  expired: ["Expired", "Nobody had used it for the TTL."],
  removed: ["Removed by hand", "Somebody had it removed."],
  reply_not_indexed: ["Reply not cached", "It was a reply, and the deterministic mode does not cache what decoding computes."],
  not_restored: ["Not listed yet", "After the start the cache was still finding out what the disk holds: this may be among it."],
  not_a_whole_block: ["End of the prompt", "Only whole blocks are cached, and a prompt's last token is always computed."],
  too_short: ["Too short", "The prompt, or what a lower tier has of it, is shorter than what is worth keeping or loading."],
  other_identity: ["Other identity", "Another tenant, salt or model has it, and it is not shared."],
  cache_off: ["Cache not used", "The request asked not to use the cache."],
  read_failed: ["Read failed", "The disk answered a whole batch of reads with an error."],
  copy_failed: ["Copy failed", "The copy from host memory to the device failed."],
  overdue: ["Too late", "The read took longer than its deadline, so that the tokens were computed."],
  behind_a_loss: ["Behind a loss", "A block before it was lost, and what follows that cannot be used until it is computed again."],
  tier_off: ["Tier off", "The tier had stopped working and was left alone for a while."],
  computed_sooner: ["Computed sooner", "A lower tier has it, and computing was thought to be faster than loading."],
  late: ["Came late", "It had not come from disk when it was sooner done to compute it than to wait on; it is kept when it comes."],
  loads_off: ["Loading off", "A lower tier has it, and the configuration says to compute rather than load."],
  damaged_length: ["Damaged: length", "The record is not as long as it says. It was put aside."],
  damaged_header: ["Damaged: header", "The record's header fails its checksum. It was put aside."],
  damaged_checksum: ["Damaged: checksum", "The record is not what was written. It was put aside."],
  wrong_identity: ["Damaged: identity", "A sound record of something else. It was put aside."],
  unknown_format: ["Unknown format", "A record of a version or codec that this program does not know."],
  missing_baseline: ["Missing baseline", "A record that needs a baseline which is lost or damaged."],
};

const sentence = (word) => {
  const plain = String(word).replaceAll("_", " ");
  return plain.charAt(0).toUpperCase() + plain.slice(1);
};

export const reasonLabel = (reason) => REASONS[reason]?.[0] ?? sentence(reason);
export const reasonText = (reason) => REASONS[reason]?.[1] ?? "";

const KINDS = {
  billing_header: "Changing client header",
  timestamp: "Timestamp",
  uuid: "UUID",
  counter: "Counter",
  reordered_keys: "Reordered keys",
  reordered_documents: "Reordered documents",
  white_space: "White space",
  merge_at_boundary: "Token merge at a boundary",
  rewritten_turn: "Rewritten turn",
  truncated: "Truncated conversation",
  other_text: "Other text",
};

export const kindLabel = (kind) => KINDS[kind] ?? sentence(kind);

export const SETTING_TEXT = {
  host_bytes: "Host memory for blocks, at most what was set aside at the start.",
  disk_bytes: "Bound of the files on disk, overhead included.",
  disk_min_free_bytes: "Space on the file system that is never taken.",
  disk_queue_bytes: "Blocks that may wait to be written at the same time.",
  disk_deadline_s: "A read that takes longer is not waited for: the tokens are computed.",
  ttl_s: "What nobody has used for so many seconds is forgotten. Empty: never.",
  min_prefix_tokens: "Shorter prompts are not cached, and less is not loaded from a lower tier.",
  host_clean_share: "Share of host slots that are kept free or have a copy on disk.",
};

export const TRANSFERS = {
  demote: "Demote",
  promote: "Promote",
  swap_out: "Swap out",
  swap_in: "Swap in",
  read: "Read",
  write: "Write",
};

export const STATE_TEXT = {
  waiting: "Waiting",
  running: "Running",
  stop: "Complete",
  length: "Length limit",
  cancelled: "Cancelled",
  timeout: "Timed out",
  error: "Error",
};

export const JOB_TEXT = {
  flush: "Flush",
  verify: "Verify",
  drain: "Drain",
  warm: "Warm",
  demote: "Demote",
};

export { sentence };
