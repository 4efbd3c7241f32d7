/**
 * The database of the demo: roles, grants, sample tables and rows. Owns what alice and rita may do, which
 * PostgreSQL enforces by GRANTs; it knows nothing of tokens or pools.
 */
import { escapeLiteral } from 'pg';
import type { EmbeddedPostgres } from './postgres.ts';

export const DEMO_DATABASE = 'app';
/** Logs in to PostgreSQL and becomes the role of a token, nothing more. */
export const SERVICE_USER = 'turnstile';
export const WRITER = 'alice';
export const READER = 'rita';

/** Creates everything in one go; the replica shows it when the promise resolves. */
export async function createDemoDatabase(postgres: EmbeddedPostgres, servicePassword: string): Promise<void> {
  await runAll(postgres, 'postgres', [
    // Roles with LOGIN and no password: the way in is a token, since SCRAM without a password never succeeds.
    `CREATE ROLE ${WRITER} LOGIN`,
    `CREATE ROLE ${READER} LOGIN`,
    `CREATE ROLE ${SERVICE_USER} LOGIN NOINHERIT PASSWORD ${escapeLiteral(servicePassword)}`,
    // It may become the two (SET), has none of their rights itself (INHERIT) and can grant nothing (ADMIN).
    `GRANT ${WRITER}, ${READER} TO ${SERVICE_USER} WITH INHERIT FALSE, SET TRUE, ADMIN FALSE`,
    `CREATE DATABASE ${DEMO_DATABASE}`,
    `REVOKE ALL ON DATABASE ${DEMO_DATABASE} FROM PUBLIC`,
    `GRANT CONNECT ON DATABASE ${DEMO_DATABASE} TO ${SERVICE_USER}, ${WRITER}, ${READER}`,
    `GRANT TEMPORARY ON DATABASE ${DEMO_DATABASE} TO ${WRITER}`,
  ]);
  await runAll(postgres, DEMO_DATABASE, [
    `CREATE TABLE customer (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      name text NOT NULL,
      city text NOT NULL,
      created_by name NOT NULL DEFAULT current_user
    )`,
    `CREATE TABLE invoice (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      customer_id bigint NOT NULL REFERENCES customer,
      issued_on date NOT NULL,
      amount numeric(12, 2) NOT NULL CHECK (amount >= 0),
      paid boolean NOT NULL DEFAULT false
    )`,
    `INSERT INTO customer (name, city) VALUES
      ('Aurora Bakery', 'Turku'), ('Brass & Sons', 'Leeds'), ('Casa Verde', 'Porto'), ('Dune Optics', 'Tunis')`,
    `INSERT INTO invoice (customer_id, issued_on, amount, paid)
      SELECT 1 + n % 4, date '2026-01-01' + n, round((n * 37.5)::numeric % 900 + 20, 2), n % 3 = 0
      FROM generate_series(1, 60) AS n`,
    `GRANT SELECT, INSERT, UPDATE, DELETE ON customer, invoice TO ${WRITER}`,
    `GRANT SELECT ON customer, invoice TO ${READER}`,
  ]);
  await postgres.replicaCaughtUp();
}

async function runAll(
  postgres: EmbeddedPostgres,
  database: string,
  statements: readonly string[],
): Promise<void> {
  const client = postgres.client({ database });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
