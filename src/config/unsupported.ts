/**
 * Keys and sections that PgDog knows and pgturnstile does not. A key at PgDog's own default says nothing and is
 * passed over; any other value is a warning that names it, so that a PgDog file loads and hides no loss. Where the
 * loss is one of safety the warning says so.
 */

/** Section → key → PgDog's default; `null` where PgDog has none, so that any value is worth a warning. */
export const UNSUPPORTED_KEYS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  general: {
    workers: 2,
    shutdown_termination_timeout: null,
    healthcheck_interval: 30_000,
    idle_healthcheck_interval: 30_000,
    idle_healthcheck_delay: 5000,
    healthcheck_timeout: 5000,
    healthcheck_port: null,
    require_healthcheck_on_discovery: false,
    ban_timeout: 300_000,
    ban_replica_lag: Number.POSITIVE_INFINITY,
    ban_replica_lag_bytes: Number.POSITIVE_INFINITY,
    lsn_check_delay: Number.POSITIVE_INFINITY,
    lsn_check_interval: 5000,
    lsn_check_timeout: 5000,
    load_balancing_strategy: 'random',
    read_write_split: 'include_primary',
    read_write_strategy: 'conservative',
    query_parser: 'auto',
    query_parser_enabled: false,
    query_parser_engine: 'pg_query_protobuf',
    regex_parser_limit: 1000,
    query_cache_limit: 1000,
    query_size_limit: null,
    query_size_limit_action: 'warn',
    log_min_duration_parse: null,
    log_query_sample_length: 1000,
    prepared_statements_ttl: null,
    prepared_statements_ttl_jitter: 30_000,
    passthrough_auth: 'disabled',
    connection_recovery: 'recover',
    client_connection_recovery: 'drop',
    pub_sub_channel_size: 0,
    openmetrics_host: '0.0.0.0',
    openmetrics_port: null,
    openmetrics_namespace: null,
    stats_period: 15_000,
    log_dedup_window: 0,
    log_dedup_threshold: 0,
    query_log: null,
    query_log_stdout: false,
    expanded_explain: false,
    dns_ttl: null,
    broadcast_address: null,
    broadcast_port: 6433,
    mirror_queue: 128,
    mirror_exposure: 1,
    dry_run: false,
    cross_shard_disabled: false,
    two_phase_commit: false,
    two_phase_commit_auto: null,
    two_phase_commit_wal_dir: null,
    two_phase_commit_wal_segment_size: 16_777_216,
    two_phase_commit_wal_fsync_interval: 0,
    two_phase_commit_wal_checkpoint_interval: 15_000,
    unique_id_min: 0,
    unique_id_function: 'standard',
    system_catalogs: 'omnisharded_sticky',
    omnisharded_sticky: false,
    sharding_lookup_cache_size: 67_108_864,
    sharding_lookup_timeout: 5000,
    resharding_copy_format: 'binary',
    resharding_parallel_copies: 1,
    resharding_copy_retry_max_attempts: 5,
    resharding_copy_retry_min_delay: 1000,
    resharding_replication_retry_max_attempts: 5,
    resharding_replication_retry_min_delay: 1000,
    cutover_traffic_stop_threshold: 1_000_000,
    cutover_replication_lag_threshold: 0,
    cutover_last_transaction_delay: 1000,
    cutover_timeout: 30_000,
    cutover_timeout_action: 'abort',
    cutover_save_config: false,
    load_schema: 'auto',
    reload_schema_on_ddl: true,
    canonicalize_type_information: false,
  },
  databases: {
    pool_size_primary: null,
    pool_size_replica: null,
    min_pool_size_primary: null,
    min_pool_size_replica: null,
    idle_timeout_primary: null,
    idle_timeout_replica: null,
    lb_weight: 255,
    shard: 0,
    resharding_only: false,
  },
  users: {
    pool_size_primary: null,
    pool_size_replica: null,
    min_pool_size_primary: null,
    min_pool_size_replica: null,
    idle_timeout_primary: null,
    idle_timeout_replica: null,
    password_hash: null,
    vault_path: null,
    server_auth: 'password',
    server_iam_region: null,
    server_vault_path: null,
    vault_refresh_percent: 80,
    server_role: null,
    replication_mode: false,
    replication_sharding: null,
    schema_admin: false,
    cross_shard_disabled: null,
    two_phase_commit: null,
    two_phase_commit_auto: null,
  },
  tcp: { congestion_control: null },
};

/** PgDog's sections that do nothing here, as `[name]` or `[[name]]`. */
export const UNSUPPORTED_SECTIONS: readonly string[] = [
  'memory',
  'replica_lag',
  'query_parsers',
  'mirroring',
  'plugins',
  'otel',
  'vault',
  'multi_tenant',
  'rewrite',
  'sharded_tables',
  'sharded_mappings',
  'sharded_schemas',
  'omnisharded_tables',
  'replication',
  'qos',
  'control',
  'query_stats',
];

/** What goes missing where the plain warning would not make it clear. */
const CONSEQUENCES: Readonly<Record<string, string>> = {
  'general.passthrough_auth': 'passwords are never passed through',
  'general.query_size_limit': 'queries of any size are accepted',
  'users.password_hash': 'give password or password_file',
  'users.vault_path': 'give password or password_file',
  'users.server_auth': 'PostgreSQL is given server_password or password',
  'users.server_role': 'the session runs as server_user, or else as name',
  multi_tenant: 'queries without the tenant column are not refused',
};

/** The warning for a key or section of PgDog's that does nothing here. */
export function unsupportedMessage(name: string): string {
  const consequence = CONSEQUENCES[name];
  const plain = "is PgDog's and not supported here; it has no effect";
  return consequence === undefined ? plain : `${plain}: ${consequence}`;
}

/** True when the value is what PgDog does anyway. */
export function isPgDogDefault(value: unknown, defaultValue: unknown): boolean {
  if (typeof value === 'bigint') return value > 0n && defaultValue === Number.POSITIVE_INFINITY;
  return defaultValue !== null && value === defaultValue;
}
