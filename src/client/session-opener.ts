/**
 * Between a proven login and a session: a server connection of the role really comes up, and PostgreSQL itself
 * takes the settings of the startup packet. Only then is the client let in, so that every refusal is a FATAL
 * error of the login and no surprise later.
 */
import { type ErrorFields, pgErrorFromFields } from '../protocol/backend-messages.ts';
import { TxStatus } from '../protocol/codes.ts';
import {
  encodeAuthenticationOk,
  encodeBackendKeyData,
  encodeParameterStatus,
  encodeReadyForQuery,
} from '../protocol/message-writer.ts';
import { PgError } from '../protocol/pg-error.ts';
import type { StartupPacket } from '../protocol/startup-packet.ts';
import { ownBatch, sendParameters } from '../server/own-batch.ts';
import type { Pool, Waiter } from '../server/pool.ts';
import { type ServerConnection, ServerState } from '../server/server-connection.ts';
import { isSessionSetting, type ParameterSet, type ParameterSets } from '../session/parameters.ts';

/** What a login needs to know about its pool before it may go on. */
export interface OpenedSession {
  readonly parameters: ParameterSet;
  /** What the client is told: PostgreSQL's values with the client's own in their place. */
  readonly reported: ReadonlyMap<string, string>;
}

/**
 * Makes sure of the pool and of the settings. `done` is called once, at once when both are known already; with a
 * PgError when PostgreSQL refuses.
 */
export function openSession(
  pool: Pool,
  startup: StartupPacket,
  parameterSets: ParameterSets,
  nowMs: number,
  done: (opened: OpenedSession | PgError) => void,
): void {
  const settings = new Map([...startup.settings].filter(([name]) => isSessionSetting(name)));
  const key = JSON.stringify([...settings]);
  const accepted = pool.acceptedStartups.get(key);
  if (accepted !== undefined && pool.welcome !== null) {
    return done(openedWith(pool.welcome, accepted, parameterSets));
  }
  const first = new FirstUse(pool, settings, parameterSets, (result) => {
    pool.sessions.delete(first);
    if (!(result instanceof PgError)) remember(pool, key, result);
    done(result instanceof PgError ? result : openedWith(pool.welcome ?? new Map(), result, parameterSets));
  });
  pool.sessions.add(first);
  const server = pool.checkout(first, nowMs);
  if (server instanceof PgError) first.onCheckoutFailed(server);
  else if (server !== null) first.onCheckedOut(server);
}

function remember(pool: Pool, key: string, values: ReadonlyMap<string, string>): void {
  if (pool.acceptedStartups.size >= ACCEPTED_MAX) pool.acceptedStartups.clear();
  if (key.length <= ACCEPTED_KEY_MAX) pool.acceptedStartups.set(key, values);
}

function openedWith(
  welcome: ReadonlyMap<string, string>,
  values: ReadonlyMap<string, string>,
  parameterSets: ParameterSets,
): OpenedSession {
  const reported = new Map(welcome);
  for (const name of reported.keys()) {
    const own = values.get(name.toLowerCase());
    if (own !== undefined) reported.set(name, own);
  }
  return { parameters: parameterSets.of(values), reported };
}

/** Borrows a connection, sets what the client asked for, and reads back what PostgreSQL made of it. */
class FirstUse implements Waiter {
  waitingSinceMs = 0;
  readonly #pool: Pool;
  readonly #settings: ReadonlyMap<string, string>;
  readonly #parameterSets: ParameterSets;
  readonly #done: (result: ReadonlyMap<string, string> | PgError) => void;
  #over = false;

  constructor(
    pool: Pool,
    settings: ReadonlyMap<string, string>,
    parameterSets: ParameterSets,
    done: (result: ReadonlyMap<string, string> | PgError) => void,
  ) {
    this.#pool = pool;
    this.#settings = settings;
    this.#parameterSets = parameterSets;
    this.#done = done;
  }

  onCheckedOut(server: ServerConnection): void {
    if (this.#settings.size === 0) {
      this.#pool.release(server, null);
      return this.#finish(new Map());
    }
    // Start from the defaults, so that a leftover of somebody else is not taken for ours.
    const names = new Set([...server.parameters.values.keys(), ...this.#settings.keys()]);
    const values = [...names].map((name) => this.#settings.get(name) ?? null);
    let refused: ErrorFields | null = null;
    sendParameters(
      server,
      [...names],
      values,
      ownBatch((error) => {
        refused = error;
        if (server.state === ServerState.Closed) return this.#finish(pgErrorFromFields(error ?? new Map()));
        const result = refused === null ? this.#canonical(server) : null;
        // What a failed SET left is not known, so the connection forgets that it knew.
        if (result === null) server.retired = true;
        else server.parameters = this.#parameterSets.of(result);
        server.linked = null;
        this.#pool.release(server, null);
        this.#finish(result ?? pgErrorFromFields(refused ?? new Map()));
      }),
    );
    server.flush();
  }

  onCheckoutFailed(error: PgError): void {
    this.#finish(error);
  }

  /** PostgreSQL's own spelling where it reports one, the client's elsewhere. */
  #canonical(server: ServerConnection): ReadonlyMap<string, string> {
    const values = new Map(this.#settings);
    for (const [name, value] of server.reported) {
      if (values.has(name.toLowerCase())) values.set(name.toLowerCase(), value);
    }
    return values;
  }

  #finish(result: ReadonlyMap<string, string> | PgError): void {
    if (this.#over) return;
    this.#over = true;
    this.#done(result);
  }

  // Nothing of the client's travels here.
  onServerBytes(): boolean {
    return true;
  }
  onCompleted(): void {}
  onNotCompleted(): void {}
  onError(): Buffer | null {
    return null;
  }
  onParameterStatus(): void {}
  onServerIdle(): void {}
  onReadyForQuery(): boolean {
    return true;
  }
  onServerDrain(): void {}
  onServerLost(): void {}
}

/** Everything between the proof and the first request, as one piece of bytes. */
export function encodeWelcome(
  reported: ReadonlyMap<string, string>,
  processId: number,
  secretKey: Buffer,
): Buffer {
  const parts: Buffer[] = [encodeAuthenticationOk()];
  for (const [name, value] of reported) parts.push(encodeParameterStatus(name, value));
  parts.push(encodeBackendKeyData(processId, secretKey), encodeReadyForQuery(TxStatus.Idle));
  return Buffer.concat(parts);
}

const ACCEPTED_MAX = 1_000;
const ACCEPTED_KEY_MAX = 4_096;
