/**
 * The composition root: builds everything from a Config, owns the maps of pools and sessions, hands a proven login
 * to its session, keeps time, drains. There is no module-level state anywhere; two workers can live in one process.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { AdminSession } from './admin/admin-session.ts';
import type { AdminView } from './admin/snapshot.ts';
import type { TokenFacts } from './auth/identity.ts';
import type { SkippedJwk } from './auth/jwks-document.ts';
import { ScramKeys } from './auth/scram-keys.ts';
import { TokenAuthority, type TokenListeners } from './auth/token-authority.ts';
import { Clock } from './base/clock.ts';
import type { Logger } from './base/log.ts';
import { ClientSession, type SessionServices } from './client/client-session.ts';
import { Listener } from './client/listener.ts';
import type { LoginResult, LoginTarget } from './client/login-contract.ts';
import { deriveLoginKeys } from './client/login-rules.ts';
import { internalFault } from './client/refusals.ts';
import { encodeWelcome, openSession } from './client/session-opener.ts';
import { tokenForLog } from './client/session-token.ts';
import { SessionWatch } from './client/session-watch.ts';
import { TokenRenewal } from './client/token-renewal.ts';
import type { Config } from './config/config.ts';
import { usesTokens } from './config/token-use.ts';
import { ServerCertificate } from './net/tls.ts';
import type { WireHandler } from './net/wire.ts';
import { encodeErrorResponse } from './protocol/message-writer.ts';
import { PgError, SqlState } from './protocol/pg-error.ts';
import type { AcceptedStartup, Pool } from './server/pool.ts';
import { PoolDirectory } from './server/pool-directory.ts';
import { ClaimSettingSets, claimSettingNames } from './session/claim-settings.ts';
import { ParameterSets } from './session/parameters.ts';
import { StatementRegistry } from './session/prepared-statements.ts';
import { ClaimNames } from './sql/claim-names.ts';
import { StatementAnalyzer } from './sql/statement.ts';

export interface WorkerOptions {
  readonly config: Config;
  readonly log: Logger;
}

/** A running pooler. */
export interface Worker {
  readonly host: string;
  readonly port: number;
  /** What it does at the moment, as the console shows it. */
  readonly view: AdminView;
  /** Lets transactions finish, up to `shutdown_timeout`, then ends what is left. Resolves when nobody is left. */
  drain(): Promise<void>;
  /** Ends everything at once. */
  destroy(): void;
}

/** Starts a pooler. Rejects with the system's error when it cannot listen, or with the fault of a key or file. */
export async function startWorker(options: WorkerOptions): Promise<Worker> {
  const claimNames = new ClaimNames(claimSettingNames(options.config));
  const worker = new PoolerWorker(options, await StatementAnalyzer.load({ claimNames }), claimNames);
  await worker.start();
  return worker;
}

/** Invariant: a client that logged in is in `#opening` or has a session in `#sessions`, never both. */
class PoolerWorker implements Worker, LoginTarget, AdminView {
  readonly config: Config;
  readonly clock: Clock = new Clock();
  readonly pools: PoolDirectory;
  readonly startedAtMs: number = Date.now();
  readonly #log: Logger;
  readonly #scramKeys = new ScramKeys();
  readonly #parameterSets = new ParameterSets();
  /** The settings that no session with a token may set. */
  readonly #claimNames: ClaimNames;
  #services: SessionServices;
  #watch: SessionWatch;
  readonly #sessions = new Map<number, ClientSession>();
  readonly #opening = new Set<OpeningClient>();
  /** Each console with the end of the token that opened it, milliseconds since the epoch; Infinity without one. */
  /** Each with the token that opened it and the monotonic time at which that expires. */
  readonly #consoles = new Map<
    AdminSession,
    { readonly untilMs: number; readonly token: TokenFacts | null }
  >();
  #listener: Listener | null = null;
  /** Null when nobody is asked for a token. */
  #authority: TokenAuthority | null = null;
  #ticker: NodeJS.Timeout | null = null;
  #nextSessionId = 1;
  #random: Buffer = Buffer.alloc(0);
  #randomUsed: number = RANDOM_BYTES;
  #draining = false;
  #onEmpty: (() => void) | null = null;
  host = '';
  port = 0;

  constructor(options: WorkerOptions, analyzer: StatementAnalyzer, claimNames: ClaimNames) {
    this.#claimNames = claimNames;
    this.config = options.config;
    this.#log = options.log;
    this.pools = new PoolDirectory({
      config: options.config,
      scramKeys: this.#scramKeys,
      parameterSets: this.#parameterSets,
      now: () => this.clock.precise(),
      log: options.log,
    });
    this.#services = {
      clock: this.clock,
      analyzer,
      registry: new StatementRegistry(),
      claims: new ClaimSettingSets(options.config),
      parameterSets: this.#parameterSets,
      log: options.log,
      tokens: null,
      onSessionEnd: (session) => this.#onSessionEnd(session),
    };
    this.#watch = this.#makeWatch();
  }

  get view(): AdminView {
    return this;
  }

  async start(): Promise<void> {
    const { config } = this;
    const { tlsCertificate, tlsPrivateKey, tlsClientCaCertificate } = config.general;
    const authority = usesTokens(config)
      ? await TokenAuthority.open(config, tokenListeners(this.#log))
      : null;
    this.#authority = authority;
    const listener = new Listener({
      config,
      certificate:
        tlsCertificate !== null && tlsPrivateKey !== null
          ? ServerCertificate.load(tlsCertificate, tlsPrivateKey, tlsClientCaCertificate)
          : null,
      verifier: authority,
      scramKeys: this.#scramKeys,
      target: this,
      log: this.#log,
      now: Date.now,
    });
    if (authority !== null) this.#watchTokens(authority, listener);
    await deriveLoginKeys(config, this.#scramKeys);
    const address = await listener.listen();
    this.#listener = listener;
    this.host = config.general.host;
    this.port = address.port;
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    // What is open in this configuration is said before anybody comes.
    this.#watch.tick(this.clock.precise());
    this.pools.warm();
  }

  // ---- AdminView -------------------------------------------------------------------------------------------

  sessions(): Iterable<ClientSession> {
    return this.#sessions.values();
  }

  get loginCount(): number {
    return this.#listener?.loginCount ?? 0;
  }

  reconnect(databaseName: string | null): void {
    this.pools.reconnect(databaseName);
  }

  // ---- LoginTarget -----------------------------------------------------------------------------------------

  get sessionCount(): number {
    return this.#sessions.size + this.#opening.size + this.#consoles.size;
  }

  onLogin(login: LoginResult): void {
    const { identity } = login;
    if (identity === null) return this.#openConsole(login);
    const pool = this.pools.acquire(identity, login.startup.database);
    if (pool instanceof PgError) return this.#refuseLogin(login, pool);
    const waiting = new OpeningClient(login, this.clock.precise(), () => {
      this.#opening.delete(waiting);
      this.#whenEmpty();
    });
    this.#opening.add(waiting);
    login.wire.setHandler(waiting);
    const guarded = identity.token !== null || pool.guardedRole !== null ? this.#claimNames : null;
    openSession(pool, login.startup, guarded, this.#parameterSets, this.clock.precise(), (opened) => {
      this.#opening.delete(waiting);
      this.#guarded(login, () => this.#onOpened(login, pool, opened, waiting));
    });
  }

  #onOpened(login: LoginResult, pool: Pool, opened: AcceptedStartup | PgError, waiting: OpeningClient): void {
    const { identity } = login;
    if (identity === null) return;
    // Remembered also when nobody is left to be told.
    if (opened instanceof PgError) this.pools.reject(pool, opened);
    if (waiting.gone) return;
    if (opened instanceof PgError) return this.#refuseLogin(login, opened);
    const refused = this.pools.refusal(identity, pool);
    if (refused !== null) return this.#refuseLogin(login, refused);
    if (identity.token === null && identity.method !== 'anonymous') {
      return this.#openSession(login, pool, opened, waiting.early);
    }
    this.#opening.add(waiting);
    this.#watch.admit({ pool, identity }, this.clock.precise(), (denied) => {
      if (!this.#opening.delete(waiting) || waiting.gone) return;
      this.#guarded(login, () => {
        if (denied !== null) this.#refuseLogin(login, denied);
        else this.#openSession(login, pool, opened, waiting.early);
      });
    });
  }

  /** Past the proof nobody else would tell the client of a fault of ours. */
  #guarded(login: LoginResult, step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#refuseLogin(login, internalFault(error instanceof Error ? error : new Error('no error')));
    }
  }

  async onCancel(processId: number, secret: Buffer): Promise<void> {
    const session = this.#sessions.get(processId);
    if (session === undefined || session.secretKey.length !== secret.length) return;
    if (!timingSafeEqual(session.secretKey, secret)) return;
    await session.cancel();
  }

  #openSession(login: LoginResult, pool: Pool, opened: AcceptedStartup, early: Buffer | null): void {
    const identity = login.identity;
    if (identity === null) return;
    const id = this.#takeSessionId();
    const secretKey = this.#takeSecret(
      login.startup.protocolMinor >= 2 ? SECRET_BYTES_3_2 : SECRET_BYTES_3_0,
    );
    const session = new ClientSession({
      id,
      wire: login.wire,
      identity,
      databaseName: login.startup.database,
      requestedUser: login.startup.user,
      pool,
      startupParameters: opened.parameters,
      secretKey,
      general: this.config.general,
      services: this.#services,
    });
    this.#sessions.set(id, session);
    try {
      if (this.config.general.logConnections) this.#logConnection(session, login);
      login.wire.write(encodeWelcome(opened.statusMessages, id, secretKey));
      if (this.#draining) return session.drain();
      login.wire.resume();
      if (early !== null) session.relay.onBytes(early, 0, early.length);
    } catch (error) {
      session.end(internalFault(error instanceof Error ? error : new Error('no error')));
    }
  }

  #logConnection(session: ClientSession, login: LoginResult): void {
    const { identity } = session;
    const { token } = identity;
    this.#log.info(
      {
        client: session.id,
        role: identity.role,
        database: session.databaseName,
        method: identity.method,
        peer: login.wire.remoteAddress,
        tls: login.tlsInUse,
        ...(token === null ? {} : tokenForLog(token)),
      },
      'client logged in',
    );
  }

  #openConsole(login: LoginResult): void {
    const console = new AdminSession({
      wire: login.wire,
      user: login.adminUser ?? '',
      view: this,
      onEnd: () => {
        this.#consoles.delete(console);
        this.#whenEmpty();
      },
    });
    const { adminUntilMs, adminToken: token } = login;
    const untilMs =
      adminUntilMs === null ? Number.POSITIVE_INFINITY : this.clock.precise() + (adminUntilMs - Date.now());
    this.#consoles.set(console, { untilMs, token });
    console.start();
  }

  #refuseLogin(login: LoginResult, error: PgError): void {
    this.#log.warn(
      {
        role: login.identity?.role,
        database: login.startup.database,
        peer: login.wire.remoteAddress,
        code: error.code,
        ...(error.reason === undefined ? {} : { reason: error.reason }),
        ...(error.code === SqlState.InternalError && { err: error.cause }),
      },
      `login refused: ${error.message}`,
    );
    login.wire.setHandler(DEAF);
    login.wire.end(encodeErrorResponse(error, { severity: 'FATAL' }));
    this.#whenEmpty();
  }

  /** Session ids are the process ids of cancel keys: positive 32-bit numbers, none in use twice. */
  #takeSessionId(): number {
    while (this.#sessions.has(this.#nextSessionId)) this.#advanceSessionId();
    const id = this.#nextSessionId;
    this.#advanceSessionId();
    return id;
  }

  /** Random bytes for a cancel key, drawn from the system in larger pieces. */
  #takeSecret(byteCount: number): Buffer {
    if (this.#randomUsed + byteCount > RANDOM_BYTES) {
      this.#random = randomBytes(RANDOM_BYTES);
      this.#randomUsed = 0;
    }
    const secret = Buffer.from(this.#random.subarray(this.#randomUsed, this.#randomUsed + byteCount));
    this.#random.fill(0, this.#randomUsed, this.#randomUsed + byteCount);
    this.#randomUsed += byteCount;
    return secret;
  }

  #advanceSessionId(): void {
    this.#nextSessionId = this.#nextSessionId >= SESSION_ID_MAX ? 1 : this.#nextSessionId + 1;
  }

  #onSessionEnd(session: ClientSession): void {
    this.#sessions.delete(session.id);
    if (this.config.general.logDisconnections) {
      this.#log.info(
        { client: session.id, role: session.identity.role, database: session.databaseName },
        'client disconnected',
      );
    }
    this.#whenEmpty();
  }

  // ---- sessions of tokens ----------------------------------------------------------------------------------

  #makeWatch(): SessionWatch {
    return new SessionWatch({
      policy: this.config.turnstile,
      authority: this.#authority,
      pools: this.pools,
      parameterSets: this.#parameterSets,
      sessions: () => this.#sessions.values(),
      log: this.#log,
    });
  }

  #watchTokens(authority: TokenAuthority, listener: Listener): void {
    const { config } = this;
    const watch = this.#makeWatch();
    this.#watch = watch;
    this.#services = {
      ...this.#services,
      tokens: {
        policy: config.turnstile,
        renewal: new TokenRenewal({ config, authority, budget: listener.budget }),
        withdrawn: (facts) => watch.withdrawn(facts),
        wallMs: Date.now,
      },
    };
  }

  // ---- time and end ----------------------------------------------------------------------------------------

  #tick(): void {
    const nowMs = this.clock.precise();
    try {
      this.#listener?.tick(nowMs);
      this.pools.tick(nowMs);
      this.#watch.tick(nowMs);
      for (const session of this.#sessions.values()) session.tick(nowMs);
      for (const [console, { untilMs, token }] of [...this.#consoles]) {
        const withdrawn = token === null ? null : this.#watch.withdrawn(token);
        if (withdrawn !== null) console.withdraw(withdrawn);
        else if (nowMs >= untilMs) console.expire();
      }
    } catch (error) {
      // A fault of ours in one deadline must not end the process, and with it every session.
      this.#log.error({ err: error }, 'tick failed');
    }
    for (const waiting of this.#opening) {
      if (nowMs - waiting.sinceMs < this.config.general.clientLoginTimeoutMs) continue;
      waiting.onClose();
      this.#refuseLogin(waiting.login, loginTimedOut());
    }
  }

  drain(): Promise<void> {
    if (!this.#draining) {
      this.#draining = true;
      this.#log.info({ clients: this.#sessions.size }, 'draining');
      this.#listener?.drain();
      this.#listener?.stop();
      for (const session of [...this.#sessions.values()]) session.drain();
      for (const console of [...this.#consoles.keys()]) console.end();
    }
    return new Promise((resolve) => {
      let deadline: NodeJS.Timeout | null = null;
      const { shutdownTimeoutMs } = this.config.general;
      const finish = (): void => {
        if (deadline !== null) clearTimeout(deadline);
        this.#onEmpty = null;
        this.destroy();
        resolve();
      };
      if (Number.isFinite(shutdownTimeoutMs)) {
        deadline = setTimeout(
          () => {
            this.#log.warn(
              { clients: this.#sessions.size },
              'shutdown_timeout: ending the sessions that are left',
            );
            for (const session of [...this.#sessions.values()]) session.end(shutdownError());
            // Running statements get their cancel request before the connections go.
            deadline = setTimeout(finish, CANCEL_GRACE_MS);
          },
          Math.min(shutdownTimeoutMs, TIMER_MS_MAX),
        );
      }
      this.#onEmpty = finish;
      this.#whenEmpty();
    });
  }

  #whenEmpty(): void {
    if (this.#onEmpty === null || this.sessionCount > 0) return;
    const done = this.#onEmpty;
    this.#onEmpty = null;
    // Connections that are being cleaned finish first; one more tick sees them idle.
    setTimeout(done, DRAIN_SETTLE_MS);
  }

  destroy(): void {
    if (this.#ticker !== null) clearInterval(this.#ticker);
    this.#ticker = null;
    this.#listener?.stop();
    this.#authority?.stop();
    for (const session of [...this.#sessions.values()]) session.end(shutdownError());
    for (const console of [...this.#consoles.keys()]) console.end();
    this.pools.destroy();
  }
}

/** A client that proved itself and waits for its role to come up at PostgreSQL. */
class OpeningClient implements WireHandler {
  gone = false;
  /** What the client sent before it was told that it may. */
  early: Buffer | null = null;
  readonly login: LoginResult;
  /** When the proof was given. */
  readonly sinceMs: number;
  readonly #onGone: () => void;

  constructor(login: LoginResult, sinceMs: number, onGone: () => void) {
    this.login = login;
    this.sinceMs = sinceMs;
    this.#onGone = onGone;
  }

  onBytes(buffer: Buffer, start: number, end: number): void {
    const bytes = buffer.subarray(start, end);
    this.early = this.early === null ? Buffer.from(bytes) : Buffer.concat([this.early, bytes]);
    if (this.early.length > EARLY_BYTES_MAX) this.login.wire.pause();
  }

  onDrain(): void {}

  onClose(): void {
    this.gone = true;
    this.#onGone();
  }
}

/** What happens to keys and revocations, in the log. `issuer` is null for the `jwt_*` keys. */
function tokenListeners(log: Logger): TokenListeners {
  const onSkipped = (issuer: string | null, skipped: readonly SkippedJwk[]): void => {
    if (!skipped.some((key) => key.leaked)) return;
    log.error({ issuer, skipped }, 'the issuer publishes a private or symmetric key');
  };
  return {
    onFileFault: (issuer, message) => log.error({ reason: 'key_file', issuer }, `key file: ${message}`),
    onFileLoaded: (issuer, key, skipped) => {
      onSkipped(issuer, skipped);
      log.info({ issuer, key }, 'key file loaded');
    },
    onJwksEvent: (issuer, event) => {
      if (event.type === 'loaded') {
        if (event.skippedAnew) onSkipped(issuer, event.skipped);
        const fields = { issuer, keys: event.keys, skipped: event.skipped.length };
        if (event.changed) log.info(fields, 'issuer keys loaded');
        else log.debug(fields, 'issuer keys are as before');
      } else {
        const { serving, retryInMs, message } = event;
        log.warn({ issuer, serving, next_ms: retryInMs }, `issuer keys: ${message}`);
      }
    },
    onRevocations: ({ size, dropped }) => log.info({ entries: size, dropped }, 'revocation file loaded'),
    onRevocationFault: (message) => log.error({ reason: 'revocation_file' }, message),
  };
}

function shutdownError(): PgError {
  return new PgError({
    code: SqlState.AdminShutdown,
    message: 'terminating connection due to administrator command',
    severity: 'FATAL',
  });
}

/** The proof was in time, PostgreSQL was not. */
function loginTimedOut(): PgError {
  return new PgError({
    code: SqlState.QueryCanceled,
    message: 'canceling authentication due to timeout',
    severity: 'FATAL',
    reason: 'login_timeout',
  });
}

const DEAF: WireHandler = { onBytes() {}, onDrain() {}, onClose() {} };
const RANDOM_BYTES = 4_096;
const TICK_MS = 100;
const TIMER_MS_MAX = 0x7fffffff;
const DRAIN_SETTLE_MS = 20;
const CANCEL_GRACE_MS = 200;
const EARLY_BYTES_MAX = 64 * 1024;
const SESSION_ID_MAX = 0x7fffffff;
const SECRET_BYTES_3_0 = 4;
const SECRET_BYTES_3_2 = 32;
