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
import { PgError, SqlState } from '../protocol/pg-error.ts';
import type { StartupPacket } from '../protocol/startup-packet.ts';
import { ownBatch, sendParameters } from '../server/own-batch.ts';
import type { AcceptedStartup, Pool, Waiter } from '../server/pool.ts';
import { type ServerConnection, ServerState } from '../server/server-connection.ts';
import { isSessionSetting, type ParameterSets } from '../session/parameters.ts';
import { type ClaimNames, claimMessage } from '../sql/claim-names.ts';
import { changesHowSqlIsRead, settingName, widensAccess } from '../sql/settings.ts';

/**
 * Makes sure of the pool and of the settings. `guarded` are the settings that such a session may not make, null when
 * it may all. `done` is called once, at once when both are known already; with a
 * PgError when PostgreSQL refuses.
 */
export function openSession(
  pool: Pool,
  startup: StartupPacket,
  guarded: ClaimNames | null,
  parameterSets: ParameterSets,
  nowMs: number,
  done: (opened: AcceptedStartup | PgError) => void,
): void {
  let settings = startup.settings;
  for (const name of settings.keys()) {
    if (isSessionSetting(name)) continue;
    settings = new Map([...startup.settings].filter(([other]) => isSessionSetting(other)));
    break;
  }
  if (guarded !== null) {
    for (const [name, value] of settings) {
      if (changesHowSqlIsRead(name, value)) return done(unreadable(name));
      if (guarded.has(settingName(name))) return done(notYours(name));
    }
  }
  if (pool.options.readOnly) {
    for (const [name, value] of settings)
      if (widensAccess(settingName(name), value)) return done(notYours(name));
  }
  const key = JSON.stringify([...settings]);
  const accepted = pool.acceptedStartups.get(key);
  if (accepted !== undefined) return done(accepted);
  const doubtful = new Map([...settings].filter(([name, value]) => !isTakenAsGiven(name, value)));
  const doubtfulKey = JSON.stringify([...doubtful]);
  const complete = (base: AcceptedStartup): AcceptedStartup => {
    if (doubtful.size === settings.size) return base;
    const values = new Map([...settings, ...base.parameters.values]);
    const opened = openedWith(pool.welcome ?? new Map(), values, parameterSets);
    remember(pool, key, opened);
    return opened;
  };
  const base = pool.acceptedStartups.get(doubtfulKey);
  if (base !== undefined) return done(complete(base));
  const first = new FirstUse(pool, doubtful, parameterSets, (result) => {
    pool.sessions.delete(first);
    if (result instanceof PgError) return done(result);
    const opened = openedWith(pool.welcome ?? new Map(), result, parameterSets);
    remember(pool, doubtfulKey, opened);
    done(complete(opened));
  });
  pool.sessions.add(first);
  const server = pool.checkout(first, nowMs);
  if (server instanceof PgError) first.onCheckoutFailed(server);
  else if (server !== null) first.onCheckedOut(server);
}

/**
 * Values that PostgreSQL takes as they are, so that it need not be asked: drivers send these two with every login,
 * and an application_name that is new each time would make each login wait for a server connection.
 */
function isTakenAsGiven(name: string, value: string): boolean {
  if (name === 'client_encoding') return value === 'UTF8';
  return name === 'application_name' && PLAIN_NAME.test(value);
}

/** Every text is read for what the session may not do, by the rules of the settings that it is read with. */
function unreadable(name: string): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: `parameter "${name}" cannot be set to this value through this pooler`,
    severity: 'FATAL',
    reason: 'unreadable_sql',
  });
}

/** The setting carries what was verified of a token. */
function notYours(name: string): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: claimMessage(name),
    severity: 'FATAL',
    reason: 'protected_parameter',
  });
}

function remember(pool: Pool, key: string, opened: AcceptedStartup): void {
  if (pool.acceptedStartups.size >= ACCEPTED_MAX) pool.acceptedStartups.clear();
  if (key.length <= ACCEPTED_KEY_MAX) pool.acceptedStartups.set(key, opened);
}

function openedWith(
  welcome: ReadonlyMap<string, string>,
  values: ReadonlyMap<string, string>,
  parameterSets: ParameterSets,
): AcceptedStartup {
  const messages: Buffer[] = [];
  for (const [name, value] of welcome) {
    messages.push(encodeParameterStatus(name, values.get(name.toLowerCase()) ?? value));
  }
  return { parameters: parameterSets.of(values), statusMessages: Buffer.concat(messages) };
}

/** Borrows a connection, sets what the client asked for, and reads back what PostgreSQL made of it. */
class FirstUse implements Waiter {
  waitingSinceMs = 0;
  readonly sendingPart: boolean = false;
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
    const { target, now } = this.#pool.options;
    // The client is not in yet, so nobody else would notice that no answer comes.
    server.cleanDeadlineMs = now() + target.connectTimeoutMs;
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
  onCommand(): void {}
  onCompleted(): void {}
  onNotCompleted(): void {}
  onError(): Buffer | null {
    return null;
  }
  onParameterStatus(): boolean {
    return true;
  }
  onSkipping(): void {}
  onServerIdle(): void {}
  onReadyForQuery(): boolean {
    return true;
  }
  onServerDrain(): void {}
  onServerLost(): void {
    this.#finish(
      new PgError({ code: SqlState.ConnectionFailure, message: 'connection to PostgreSQL was lost' }),
    );
  }
}

/** Everything between the proof and the first request, as one piece of bytes. */
export function encodeWelcome(statusMessages: Buffer, processId: number, secretKey: Buffer): Buffer {
  return Buffer.concat([
    AUTHENTICATION_OK,
    statusMessages,
    encodeBackendKeyData(processId, secretKey),
    READY_FOR_QUERY,
  ]);
}

const AUTHENTICATION_OK: Buffer = encodeAuthenticationOk();
const READY_FOR_QUERY: Buffer = encodeReadyForQuery(TxStatus.Idle);
/** Printable ASCII of at most NAMEDATALEN - 1 bytes: pg_clean_ascii and truncation leave it alone. */
const PLAIN_NAME = /^[ -~]{0,63}$/;
const ACCEPTED_MAX = 1_000;
const ACCEPTED_KEY_MAX = 4_096;
