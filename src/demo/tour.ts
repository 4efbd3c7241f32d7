/**
 * The tour: what pgturnstile is for, tried by an ordinary client (`pg`) against a running pooler, each step printed
 * with its result. Owns the steps and what must come out of each; it knows the pooler by its port only.
 */
import { connect, type Socket } from 'node:net';
import { Client } from 'pg';
import { READER, SERVICE_USER, WRITER } from './demo-database.ts';
import type { MintOptions } from './issuer.ts';
import { delay } from './postmaster.ts';

export interface TourTarget {
  host: string;
  port: number;
  database: string;
  /** A token of the right audience unless the options say otherwise. */
  mint(options: MintOptions): Promise<string>;
  /** Asks the replica itself, as the superuser, for the first column of the first row. */
  askReplica(sql: string, values: readonly unknown[]): Promise<unknown>;
  /** Server connections that the pool of one role may have. */
  poolSize: number;
  print(line: string): void;
}

const STEP_TIMEOUT_MS = 20_000;
const CLOSE_TIMEOUT_MS = 1_000;
const RETRY_MS = 100;
const CLIENTS = 20;
/** PostgreSQL's CANCEL_REQUEST_CODE: 1234 in the upper and 5678 in the lower half. */
const CANCEL_REQUEST_CODE = 80_877_102;

interface Step {
  title: string;
  /** Resolves with what was seen; throws when it is not what must be seen. */
  run(tour: Tour): Promise<string>;
}

const STEPS: readonly Step[] = [
  { title: `${WRITER} logs in with a token for a password`, run: whoAmI },
  { title: 'as user "jwt", the token alone names the role', run: placeholder },
  { title: `${WRITER} writes, and takes it back`, run: writeAndRollBack },
  { title: `${WRITER} commits, and the replica shows it`, run: writeAndReplicate },
  { title: `${READER} reads, but her write is refused`, run: refusedWrite },
  {
    title: 'an expired token is refused',
    run: (tour) => tour.refusedLogin(WRITER, { subject: WRITER, ttlSeconds: -1 }, ['28P01']),
  },
  {
    title: 'a token signed with a strange key is refused',
    run: (tour) => tour.refusedLogin(WRITER, { subject: WRITER, forged: true }, ['28P01']),
  },
  {
    title: 'a token for another audience is refused',
    run: (tour) => tour.refusedLogin(WRITER, { subject: WRITER, audience: 'elsewhere' }, ['28P01']),
  },
  {
    title: `${READER}'s token does not open ${WRITER}'s door`,
    run: (tour) => tour.refusedLogin(WRITER, { subject: READER }, ['28P01', '28000']),
  },
  {
    title: 'a token that names the superuser opens nothing',
    run: (tour) => tour.refusedLogin('postgres', { subject: 'postgres' }, ['28P01', '28000']),
  },
  { title: `${WRITER} cannot leave her role`, run: refusedEscapes },
  { title: 'a running query is cancelled, the session goes on', run: cancelledQuery },
  { title: `${CLIENTS} clients share a few server connections`, run: sharedConnections },
];

/** Runs every step, also after one has failed. True if all came out as they must. */
export async function runTour(target: TourTarget): Promise<boolean> {
  let passed = 0;
  for (const { title, run } of STEPS) {
    const tour = new Tour(target);
    try {
      const seen = await withDeadline(run(tour), STEP_TIMEOUT_MS);
      target.print(`  ✓ ${title}: ${seen}`);
      passed++;
    } catch (error) {
      target.print(`  ✗ ${title}: ${describe(error)}`);
    } finally {
      await tour.close();
    }
  }
  target.print(`  ${passed} of ${STEPS.length} steps came out as they must`);
  return passed === STEPS.length;
}

/** One step's clients; all of them are closed after the step. */
class Tour {
  readonly target: TourTarget;
  readonly #clients: Client[] = [];

  constructor(target: TourTarget) {
    this.target = target;
  }

  /** Logs in as `user` with a fresh token for it. */
  async login(user: string, token: MintOptions = { subject: user }): Promise<Client> {
    const { host, port, database } = this.target;
    const password = await this.target.mint(token);
    const client = new Client({ host, port, database, user, password, ssl: false });
    client.on('error', () => {});
    this.#clients.push(client);
    await client.connect();
    return client;
  }

  refusedLogin(user: string, token: MintOptions, codes: readonly string[]): Promise<string> {
    return refusal(this.login(user, token), codes);
  }

  /** A connection that does not answer the goodbye is cut. */
  async close(): Promise<void> {
    const goodbye = async (client: Client): Promise<void> => {
      try {
        await withDeadline(client.end(), CLOSE_TIMEOUT_MS);
      } catch {
        (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy();
      }
    };
    await Promise.all(this.#clients.map(goodbye));
  }
}

async function whoAmI(tour: Tour): Promise<string> {
  const client = await tour.login(WRITER);
  const sql = "SELECT session_user, current_user, current_setting('role') AS role";
  const [row] = (await client.query(sql)).rows as Record<string, string>[];
  const { session_user: session, current_user: current, role } = row ?? {};
  const seen = `session_user ${session}, current_user ${current}, role ${role}`;
  must(session === SERVICE_USER && current === WRITER && role === WRITER, seen);
  return seen;
}

async function placeholder(tour: Tour): Promise<string> {
  const client = await tour.login('jwt', { subject: READER });
  const current = await one(client, 'SELECT current_user');
  must(current === READER, `current_user ${current}`);
  return `current_user ${current}`;
}

async function writeAndRollBack(tour: Tour): Promise<string> {
  const client = await tour.login(WRITER);
  const count = 'SELECT count(*)::int FROM customer';
  const before = Number(await one(client, count));
  await client.query('BEGIN');
  const sql = "INSERT INTO customer (name, city) VALUES ($1, 'Nowhere') RETURNING created_by";
  const author = await one(client, sql, ['Passing Trade']);
  const during = Number(await one(client, count));
  await client.query('ROLLBACK');
  const after = Number(await one(client, count));
  const seen = `${before} customers, ${during} within the transaction, ${after} after ROLLBACK`;
  must(author === WRITER && during === before + 1 && after === before, `${seen}, written by ${author}`);
  return seen;
}

async function writeAndReplicate(tour: Tour): Promise<string> {
  const client = await tour.login(WRITER);
  const sql = 'UPDATE invoice SET amount = amount + 1 WHERE id = 1 RETURNING amount::text';
  const written = await one(client, sql);
  const startedMs = performance.now();
  for (;;) {
    const shown = await tour.target.askReplica('SELECT amount::text FROM invoice WHERE id = $1', [1]);
    if (shown === written) return `invoice 1 is ${written} there too`;
    must(performance.now() - startedMs < STEP_TIMEOUT_MS, `the replica shows ${shown}, not ${written}`);
    await delay(RETRY_MS);
  }
}

async function refusedWrite(tour: Tour): Promise<string> {
  const client = await tour.login(READER);
  const total = await one(client, 'SELECT sum(amount)::text FROM invoice WHERE NOT paid');
  must(total !== null, 'she sees no invoices');
  const sql = "INSERT INTO customer (name, city) VALUES ('Not Allowed', 'Nowhere')";
  return `${total} unpaid; ${await refusal(client.query(sql), ['42501'])}`;
}

async function refusedEscapes(tour: Tour): Promise<string> {
  const client = await tour.login(WRITER);
  const escapes = [
    `SET ROLE ${READER}`,
    'RESET ROLE',
    'SET SESSION AUTHORIZATION DEFAULT',
    "SELECT set_config('role', 'none', false)",
    `SELECT 1; SET ROLE ${READER}`,
  ];
  let said = '';
  for (const statement of escapes) {
    said = await refusal(client.query(statement), ['42501']);
    const current = await one(client, 'SELECT current_user');
    must(current === WRITER, `current_user is ${current} after ${statement}`);
  }
  return `${escapes.length} ways out tried; ${said}`;
}

async function cancelledQuery(tour: Tour): Promise<string> {
  const client = await tour.login(WRITER);
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
  let done = false;
  const query = refusal(client.query('SELECT pg_sleep(60)'), ['57014']).finally(() => {
    done = true;
  });
  const cancel = async (): Promise<void> => {
    // Again until it hits: the first may come before the query has reached the server.
    while (!done) {
      await sendCancelRequest(tour.target, processID, secretKey);
      await delay(RETRY_MS);
    }
  };
  const [said] = await Promise.all([query, cancel()]);
  const current = await one(client, 'SELECT current_user');
  must(current === WRITER, `current_user is ${current} afterwards`);
  return said;
}

async function sharedConnections(tour: Tour): Promise<string> {
  const clients = await Promise.all(Array.from({ length: CLIENTS }, () => tour.login(READER)));
  const sql = 'SELECT pg_backend_pid() AS pid, current_user AS role, count(*) FROM invoice';
  const rows = (await Promise.all(clients.map((client) => client.query(sql)))).flatMap(
    (result) => result.rows as { pid: number; role: string }[],
  );
  const strangers = rows.filter((row) => row.role !== READER);
  const count = new Set(rows.map((row) => row.pid)).size;
  const seen = `${rows.length} answers from ${count} server connections (pool size ${tour.target.poolSize})`;
  must(rows.length === CLIENTS && strangers.length === 0 && count <= tour.target.poolSize, seen);
  return seen;
}

/** Resolves with the refusal's words when `attempt` is refused with one of `codes`; throws in every other case. */
async function refusal(attempt: Promise<unknown>, codes: readonly string[]): Promise<string> {
  let error: { code?: unknown };
  try {
    await attempt;
    throw new TourError(`it went through, where ${codes.join(' or ')} was due`);
  } catch (caught) {
    if (caught instanceof TourError) throw caught;
    error = caught as { code?: unknown };
  }
  must(codes.includes(String(error.code)), `${describe(error)}, where ${codes.join(' or ')} was due`);
  return describe(error);
}

/** Resolves when the other side has closed the connection, which it does without a word (manual, section 54.2.8). */
function sendCancelRequest(target: TourTarget, processId: number, secretKey: number): Promise<void> {
  const request = Buffer.alloc(16);
  request.writeInt32BE(16, 0);
  request.writeInt32BE(CANCEL_REQUEST_CODE, 4);
  request.writeInt32BE(processId, 8);
  request.writeInt32BE(secretKey, 12);
  return new Promise((resolve) => {
    const socket = connect({ host: target.host, port: target.port }, () => socket.write(request));
    socket.setTimeout(STEP_TIMEOUT_MS, () => socket.destroy());
    socket.on('error', () => {});
    socket.on('close', () => resolve());
    socket.resume();
  });
}

/** The first column of the first row. */
async function one(client: Client, sql: string, values: unknown[] = []): Promise<unknown> {
  const result = await client.query({ text: sql, values, rowMode: 'array' });
  return (result.rows[0] as unknown[] | undefined)?.[0] ?? null;
}

class TourError extends Error {}

function must(condition: boolean, seen: string): asserts condition {
  if (!condition) throw new TourError(seen);
}

function describe(error: unknown): string {
  if (error instanceof TourError) return error.message;
  const { code, message } = error as { code?: unknown; message?: unknown };
  return code === undefined ? String(message) : `${String(code)} ${String(message)}`;
}

async function withDeadline<T>(promise: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_resolve, reject) => {
    const late = new TourError(`no answer within ${timeoutMs / 1000} s`);
    timer = setTimeout(() => reject(late), timeoutMs);
  });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}
