/**
 * The PostgreSQL that all test files of a run share: global-setup.ts starts it, this file tells where it is and
 * makes databases and roles with names of their own in it. A file that stops servers starts its own with
 * `startPostgres`, and must not touch this one.
 */
import { randomBytes } from 'node:crypto';
import { Client, escapeIdentifier, escapeLiteral } from 'pg';
import { inject } from 'vitest';

export interface ServerAddress {
  host: string;
  port: number;
}

/** What global-setup.ts provides; plain data, since it crosses to other processes. */
export interface SharedPostgres {
  primary: ServerAddress;
  /** null for a server given by INTEGRATION_DATABASE_URL. */
  replica: ServerAddress | null;
  superuser: string;
  password: string;
  /** A database the superuser may connect to. */
  database: string;
  /** PEM of the authority behind the server's certificate (CN localhost); null for a given server. */
  caPem: string | null;
  /** Directory of its Unix sockets, when there is one. */
  socketDirectory: string | null;
}

declare module 'vitest' {
  interface ProvidedContext {
    postgres: SharedPostgres;
  }
}

/**
 * Role names with these beginnings log in by another method than SCRAM (given server excepted). `tls_`: SCRAM and
 * only over TLS; `plain_`: cleartext password; `refused_`: pg_hba says no.
 */
export const HBA_LINES: readonly string[] = [
  'hostssl all /^tls_ 127.0.0.1/32 scram-sha-256',
  'host all /^tls_ 127.0.0.1/32 reject',
  'host all /^md5_ 127.0.0.1/32 md5',
  'host all /^plain_ 127.0.0.1/32 password',
  'host all /^trust_ 127.0.0.1/32 trust',
  'host all /^refused_ 127.0.0.1/32 reject',
];

const WAIT_TIMEOUT_MS = 20_000;

/** The shared server. Throws when vitest.config.ts does not run global-setup.ts for this project. */
export function sharedPostgres(): SharedPostgres {
  const shared = inject('postgres') as SharedPostgres | undefined;
  if (!shared)
    throw new Error('no PostgreSQL: is test/support/global-setup.ts a globalSetup of this project?');
  return shared;
}

/** A name no other test uses; lower case, at most 63 bytes. */
export function uniqueName(prefix: string): string {
  return `${prefix}_${randomBytes(5).toString('hex')}`;
}

/** A connected superuser client; the caller ends it. A connection that breaks emits no unheard 'error'. */
export async function connectSuperuser(
  target: { database?: string; replica?: boolean } = {},
): Promise<Client> {
  const shared = sharedPostgres();
  const address = target.replica ? shared.replica : shared.primary;
  if (!address) throw new Error('the given PostgreSQL has no replica');
  const client = new Client({
    host: address.host,
    port: address.port,
    user: shared.superuser,
    password: shared.password,
    database: target.database ?? shared.database,
    ssl: false,
  });
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** Runs statements as the superuser, one after the other, on a connection of their own. */
export async function asSuperuser(
  statements: readonly string[],
  target: { database?: string; replica?: boolean } = {},
): Promise<Record<string, unknown>[]> {
  const client = await connectSuperuser(target);
  try {
    let rows: Record<string, unknown>[] = [];
    for (const statement of statements) rows = (await client.query(statement)).rows;
    return rows;
  } finally {
    await client.end();
  }
}

/** Makes a database with a unique name; `drop()` ends the connections to it first. */
export async function createDatabase(
  prefix = 'db',
  statements: readonly string[] = [],
): Promise<{ name: string; drop(): Promise<void> }> {
  const name = uniqueName(prefix);
  await asSuperuser([`CREATE DATABASE ${escapeIdentifier(name)}`]);
  if (statements.length > 0) await asSuperuser(statements, { database: name });
  return {
    name,
    drop: async () => {
      await asSuperuser([`DROP DATABASE IF EXISTS ${escapeIdentifier(name)} WITH (FORCE)`]);
    },
  };
}

export interface RoleOptions {
  /** Absent: it has LOGIN and no password, so that it cannot log in with one. */
  password?: string;
  /** How PostgreSQL keeps the password. Default scram-sha-256. */
  passwordEncryption?: 'scram-sha-256' | 'md5';
  /** For instance `NOINHERIT` or `BYPASSRLS`. */
  attributes?: string;
  /** Roles this one may SET ROLE to, without inheriting from them. */
  maySetRole?: readonly string[];
}

/** Makes a role with a unique name beginning with `prefix`; `drop()` drops what it owns in `databases` too. */
export async function createRole(
  prefix = 'role',
  options: RoleOptions = {},
): Promise<{ name: string; drop(databases?: readonly string[]): Promise<void> }> {
  const name = uniqueName(prefix);
  const role = escapeIdentifier(name);
  const login =
    options.password === undefined ? 'LOGIN' : `LOGIN PASSWORD ${escapeLiteral(options.password)}`;
  await asSuperuser([
    `SET password_encryption = ${escapeLiteral(options.passwordEncryption ?? 'scram-sha-256')}`,
    `CREATE ROLE ${role} ${login} ${options.attributes ?? ''}`,
    ...(options.maySetRole ?? []).map(
      (other) => `GRANT ${escapeIdentifier(other)} TO ${role} WITH INHERIT FALSE, SET TRUE`,
    ),
  ]);
  return {
    name,
    drop: async (databases = []) => {
      for (const database of databases) await asSuperuser([`DROP OWNED BY ${role}`], { database });
      await asSuperuser([`DROP ROLE IF EXISTS ${role}`]);
    },
  };
}

/** Resolves when the replica shows all that was committed on the primary before the call. */
export async function replicaCaughtUp(): Promise<void> {
  const [row] = await asSuperuser(['SELECT pg_current_wal_insert_lsn()::text AS lsn']);
  const replica = await connectSuperuser({ replica: true });
  try {
    const deadlineMs = performance.now() + WAIT_TIMEOUT_MS;
    for (;;) {
      const { rows } = await replica.query('SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn AS caught', [
        row?.['lsn'],
      ]);
      if (rows[0].caught === true) return;
      if (performance.now() > deadlineMs) throw new Error('the replica does not catch up');
    }
  } finally {
    await replica.end();
  }
}
