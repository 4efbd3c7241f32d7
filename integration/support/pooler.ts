/**
 * A pooler in the test's own process, in front of whatever PostgreSQL the test names. Its configuration is written
 * as the two files a user would write and loaded as `run` loads them, so that defaults and checks are the real
 * ones. Owns the temporary directory and the end of the pooler; knows no test.
 */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { mintToken } from '../../src/auth/token-mint.ts';
import { createLogger } from '../../src/base/log.ts';
import type { Config } from '../../src/config/config.ts';
import { formatFault } from '../../src/config/faults.ts';
import { loadConfig } from '../../src/config/load.ts';
import { startWorker, type Worker } from '../../src/worker.ts';
import { type ServerAddress, sharedPostgres } from '../../test/support/postgres.ts';

export type TomlValue = string | number | boolean | readonly string[];
export type TomlTable = Readonly<Record<string, TomlValue>>;

/** What differs from the defaults, with the keys as they stand in the files. */
export interface PoolerOverrides {
  /** Default: loopback, port 0, auth_type trust unless given, no TLS to PostgreSQL. */
  general?: TomlTable;
  turnstile?: TomlTable;
  tcp?: TomlTable;
  admin?: TomlTable;
  databases?: readonly TomlTable[];
  users?: readonly TomlTable[];
  /** More arrays of tables of pgdog.toml, by name: `turnstile.claim_settings`. */
  arrays?: Readonly<Record<string, readonly TomlTable[]>>;
  /** More files in the directory of pgdog.toml, by name: keys, certificates. */
  files?: Readonly<Record<string, string>>;
}

export interface LogLine {
  readonly level: string;
  readonly message: string;
  readonly [field: string]: unknown;
}

/** The two files and their directory. */
export interface PoolerFiles {
  readonly directory: string;
  readonly configPath: string;
  readonly usersPath: string;
  readonly config: Config;
  remove(): void;
}

export interface RunningPooler {
  readonly host: string;
  readonly port: number;
  readonly config: Config;
  readonly worker: Worker;
  /** Every line logged so far, from level debug on. */
  readonly log: LogLine[];
  /** Ends every session and connection and removes the files. */
  stop(): Promise<void>;
}

/** Writes pgdog.toml and users.toml and loads them. Throws with every fault when they have one. */
export function writePoolerFiles(overrides: PoolerOverrides = {}): PoolerFiles {
  const directory = mkdtempSync(join(tmpdir(), 'pgturnstile-pooler-'));
  const configPath = join(directory, 'pgdog.toml');
  const usersPath = join(directory, 'users.toml');
  const general = {
    host: '127.0.0.1',
    port: 0,
    auth_type: 'trust',
    tls_verify: 'disabled',
    min_pool_size: 0,
    ...overrides.general,
  };
  for (const [name, text] of Object.entries(overrides.files ?? {}))
    writeFileSync(join(directory, name), text);
  writeFileSync(
    configPath,
    [
      tableText('[general]', general),
      tableText('[turnstile]', overrides.turnstile ?? {}),
      tableText('[tcp]', overrides.tcp ?? {}),
      ...(overrides.admin === undefined ? [] : [tableText('[admin]', overrides.admin)]),
      ...(overrides.databases ?? []).map((row) => tableText('[[databases]]', row)),
      ...Object.entries(overrides.arrays ?? {}).flatMap(([name, rows]) =>
        rows.map((row) => tableText(`[[${name}]]`, row)),
      ),
    ].join('\n'),
  );
  writeFileSync(usersPath, (overrides.users ?? []).map((row) => tableText('[[users]]', row)).join('\n'));
  const { config, faults } = loadConfig({ configPath, usersPath, env: {} });
  const remove = (): void => rmSync(directory, { recursive: true, force: true });
  if (config === null) {
    remove();
    throw new Error(`the test's configuration has faults:\n${faults.map(formatFault).join('\n')}`);
  }
  return { directory, configPath, usersPath, config, remove };
}

/** Starts a pooler. `stop()` must be called in any case. */
export async function startPooler(overrides: PoolerOverrides = {}): Promise<RunningPooler> {
  const files = writePoolerFiles(overrides);
  const log: LogLine[] = [];
  const logger = createLogger({
    format: 'json_flattened',
    level: 'debug',
    destination: { write: (line) => log.push(JSON.parse(line) as LogLine) },
  });
  try {
    const worker = await startWorker({ config: files.config, log: logger });
    return {
      host: worker.host,
      port: worker.port,
      config: files.config,
      worker,
      log,
      stop: async () => {
        worker.destroy();
        files.remove();
      },
    };
  } catch (error) {
    files.remove();
    throw error;
  }
}

/** A `[[databases]]` row for a database of the shared primary, or of another server. */
export function databaseRow(
  name: string,
  more: TomlTable = {},
  server: ServerAddress = sharedPostgres().primary,
): TomlTable {
  return { name, host: server.host, port: server.port, ...more };
}

/** A key pair of a test's own issuer: the public half for `jwt_public_key_file`, and tokens signed by the other. */
export interface TestIssuer {
  readonly publicKeyPem: string;
  readonly privateKeyPem: string;
  /** A token for `subject`, valid for five minutes unless told otherwise. */
  token(subject: string, options?: Partial<Parameters<typeof mintToken>[0]>): Promise<string>;
}

export function makeIssuer(type: 'ec' | 'rsa' | 'ed25519' = 'ec'): TestIssuer {
  const pair =
    type === 'rsa'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : type === 'ed25519'
        ? generateKeyPairSync('ed25519')
        : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const privateKeyPem = pair.privateKey.export({ format: 'pem', type: 'pkcs8' }) as string;
  return {
    publicKeyPem: pair.publicKey.export({ format: 'pem', type: 'spki' }) as string,
    privateKeyPem,
    token: (subject, options = {}) =>
      mintToken({ privateKeyPem, subject, ttlSeconds: 300, nowMs: Date.now(), ...options }),
  };
}

function tableText(header: string, table: TomlTable): string {
  const lines = Object.entries(table).map(([key, value]) => `${key} = ${valueText(value)}`);
  return `${header}\n${lines.join('\n')}\n`;
}

/** A JSON string is a TOML basic string as long as nothing but the common escapes is in it. */
function valueText(value: TomlValue): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'object') return `[${value.map((item) => JSON.stringify(item)).join(', ')}]`;
  return String(value);
}
