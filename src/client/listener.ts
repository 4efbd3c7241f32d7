/**
 * The TCP acceptor for clients: how many may be here, in all and from one address, how long a login may take, and
 * what is said while the pooler shuts down. A login itself is client-login.ts; sessions belong to the LoginTarget.
 */
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { READ_BUFFER_BYTES, Wire, type WireHandler } from '../net/wire.ts';
import { encodeErrorResponse } from '../protocol/message-writer.ts';
import { type PgError, SqlState } from '../protocol/pg-error.ts';
import { ClientLogin, type LoginHost } from './client-login.ts';
import { LoginBudget } from './login-budget.ts';
import type { LoginContext } from './login-contract.ts';
import { fatal } from './login-errors.ts';
import { LoginRules } from './login-rules.ts';

/**
 * Sockets beyond `max_clients` that may talk up to their startup packet: room for CancelRequests, which must get
 * through when the pooler is full, and for telling the others in order, over TLS if they want it.
 */
export const LOGINS_BEYOND_MAX_CLIENTS = 128;
/** The same for those beyond `max_logins_per_address`. */
export const LOGINS_BEYOND_ADDRESS = 32;
const BACKLOG = 1_024;

/** Invariant: a login is in `#logins` from accept until it is over, and in `#admitted` from its startup packet on. */
export class Listener implements LoginHost {
  readonly budget: LoginBudget;
  #context: LoginContext;
  #rules: LoginRules;
  readonly #readBuffer: Buffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
  /** Each login with the time of the first tick that saw it, null before. */
  readonly #logins = new Map<ClientLogin, number | null>();
  readonly #admitted = new Set<ClientLogin>();
  #server: Server | null = null;
  #draining = false;

  /** Throws `RangeError` for a login rule that does not compile. */
  constructor(context: LoginContext) {
    this.#context = context;
    this.#rules = new LoginRules(context.config);
    this.budget = new LoginBudget(context.config.turnstile, context.clock ?? (() => performance.now()));
  }

  /** Connections between accept and the end of their login. */
  get loginCount(): number {
    return this.#logins.size;
  }

  /** Logins that have sent their startup packet; with the sessions they are at most `max_clients`. */
  get admittedCount(): number {
    return this.#admitted.size;
  }

  /** For the logins to come; those under way keep the context they began with. */
  setContext(context: LoginContext): void {
    this.#rules = new LoginRules(context.config);
    this.#context = context;
    this.budget.setLimits(context.config.turnstile);
  }

  /**
   * Listens on `general.host` and `general.port` (0 picks a free one). Rejects with the system's error, e.g.
   * EADDRINUSE.
   */
  listen(): Promise<AddressInfo> {
    const { general, tcp } = this.#context.config;
    const server = createServer({
      pauseOnConnect: true,
      noDelay: true,
      keepAlive: tcp.keepalive,
      ...(tcp.timeMs !== null && { keepAliveInitialDelay: tcp.timeMs }),
    });
    server.on('connection', (socket) => this.#accept(socket));
    this.#server = server;
    return new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen({ host: general.host, port: general.port, backlog: BACKLOG }, () => {
        server.off('error', reject);
        // From here on errors are failed accepts (too many open files): the next one may succeed.
        server.on('error', (error) => this.#context.log.error({ err: error }, 'accept_failed'));
        resolve(server.address() as AddressInfo);
      });
    });
  }

  /**
   * Ends the logins that take too long. To be called about every 100 ms with any clock that goes forward; a login
   * is counted from the first call after its accept.
   */
  tick(nowMs: number): void {
    const timeoutMs = this.#context.config.general.clientLoginTimeoutMs;
    for (const [login, sinceMs] of this.#logins) {
      if (sinceMs === null) this.#logins.set(login, nowMs);
      else if (nowMs - sinceMs >= timeoutMs) login.expire();
    }
  }

  /** From now on every login is refused with 57P03, those under way at once. Cancel requests still pass. */
  drain(): void {
    this.#draining = true;
    for (const login of [...this.#admitted]) login.refuse(shuttingDown());
  }

  /** Stops accepting, at once. Logins and sessions that exist are not touched. */
  stop(): void {
    // Its 'close' event never comes: the wires take the sockets' handles, and the server counts sockets.
    this.#server?.close();
    this.#server = null;
  }

  admit(login: ClientLogin): PgError | null {
    if (this.#draining) return shuttingDown();
    const { config, target } = this.#context;
    const tooMany = this.budget.tooMany(login.remoteAddress);
    if (tooMany !== null) return tooMany;
    if (target.sessionCount + this.#admitted.size >= config.turnstile.maxClients) return tooManyClients();
    this.#admitted.add(login);
    return null;
  }

  onOver(login: ClientLogin): void {
    if (this.#logins.delete(login)) this.budget.end(login.remoteAddress);
    this.#admitted.delete(login);
  }

  #accept(socket: Socket): void {
    const { config, target } = this.#context;
    const count = target.sessionCount + this.#logins.size;
    if (count >= config.turnstile.maxClients + LOGINS_BEYOND_MAX_CLIENTS) {
      this.#turnAway(socket, tooManyClients());
      return;
    }
    const setup = { context: this.#context, rules: this.#rules };
    const remoteAddress = socket.remoteAddress ?? '';
    this.budget.begin(remoteAddress);
    // Those beyond may talk as well, for the same reasons; but one address must not fill the room of all.
    const tooMany = this.budget.tooMany(remoteAddress, LOGINS_BEYOND_ADDRESS);
    if (tooMany !== null) {
      this.budget.end(remoteAddress);
      this.#turnAway(socket, tooMany);
      return;
    }
    this.#logins.set(new ClientLogin(socket, this.#readBuffer, setup, this), null);
  }

  #turnAway(socket: Socket, error: PgError): void {
    const wire = Wire.adopt(socket, DEAF, this.#readBuffer);
    const { remoteAddress: peer } = wire;
    this.#context.log.info({ peer, reason: error.reason, code: error.code }, 'login_refused');
    wire.end(encodeErrorResponse(error));
  }
}

/** For a socket that is only told why it is closed. */
const DEAF: WireHandler = { onBytes() {}, onDrain() {}, onClose() {} };

function tooManyClients(): PgError {
  return fatal(SqlState.TooManyConnections, 'sorry, too many clients already', 'too_many_clients');
}

function shuttingDown(): PgError {
  return fatal(SqlState.CannotConnectNow, 'the pooler is shutting down', 'shutting_down');
}
