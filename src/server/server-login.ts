/**
 * The login at a PostgreSQL server: connect, TLS, authentication, the role, the check of who we are now. Ends in
 * a quiet, paused socket or in a ServerLoginError with the socket destroyed. It knows no pool and no policy: which
 * attributes a role may have is the caller's decision.
 */
import net from 'node:net';
import tls from 'node:tls';
import { md5Response } from '../auth/password.ts';
import { ScramClient } from '../auth/scram-client.ts';
import type { ScramKeys } from '../auth/scram-keys.ts';
import { assert } from '../base/assert.ts';
import type { Secret } from '../base/secret.ts';
import type { BackendIdentity } from '../config/config.ts';
import {
  type Authentication,
  decodeAuthentication,
  decodeBackendKeyData,
  decodeDataRow,
  decodeErrorFields,
  decodeParameterStatus,
  decodeReadyForQuery,
  pgErrorFromFields,
} from '../protocol/backend-messages.ts';
import { BackendMessage, TxStatus } from '../protocol/codes.ts';
import {
  encodeBind,
  encodeExecute,
  encodeParse,
  encodePassword,
  encodeSASLInitialResponse,
  encodeSASLResponse,
  encodeStartup,
  SSL_REQUEST,
  SYNC,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { LoginChannel, type LoginMessage } from './login-channel.ts';
import {
  encodeIdentityRequest,
  identityCommandCount,
  readIdentity,
  type ServerIdentity,
} from './server-identity.ts';
import { ServerLoginError } from './server-login-error.ts';
import { channelBindingOf, type ServerTls, startServerTls } from './server-tls.ts';

/** Settings that a startup packet must never carry on our behalf: they change who the session is. */
const FORBIDDEN_PARAMETERS = ['replication', 'role', 'session_authorization', 'options'];
/** PostgreSQL reports about fifteen; a server that reports more than this is not one. */
const PARAMETER_COUNT_MAX = 256;
const TIMER_MS_MAX = 0x7fff_ffff;
const TYPE_SSL_ACCEPTED = 0x53;
const TYPE_SSL_REFUSED = 0x4e;
/** Whoever asks learns the password, or a hash of it that can be tried out. */
const REVEALING_METHODS: readonly Authentication['kind'][] = ['cleartext', 'md5'];

/** Where to log in, and as whom. */
export interface ServerTarget {
  /** A name, an address, or (with a leading slash) the directory of a Unix socket. */
  host: string;
  port: number;
  database: string;
  /** The user of the login: the session user. */
  user: string;
  password: Secret | null;
  /** The role to take after login; null stays the user. */
  setRole: string | null;
  /**
   * How the role of a token is had; null for a login by a row of users.toml. `login_map` logs in by the certificate
   * in `tls` and never sends a password, whatever the server asks for.
   */
  backendIdentity: BackendIdentity | null;
  /** `login_group`, whose members are noted; null asks nothing. */
  loginGroup: string | null;
  tls: ServerTls;
  /** Claims are signed for the connection: ask when its backend began. Default false. */
  readBackendStart?: boolean;
  /** More of the startup packet, e.g. statement_timeout. `client_encoding` is UTF8 unless given. */
  startupParameters: Readonly<Record<string, string>>;
  /** For the whole login, from the name look-up to the check of the role; Infinity for no limit. */
  connectTimeoutMs: number;
  keepalive: { enabled: boolean; initialDelayMs: number };
}

export interface OpenServerOptions {
  /** Derived SCRAM keys, shared by all logins: PostgreSQL's salt of a user seldom changes. */
  scramKeys: ScramKeys;
  /** Gives the login up; it ends with kind `unreachable`. */
  signal?: AbortSignal;
}

/** A server connection ready for requests, in the hands of the caller. */
export interface OpenedServer extends ServerIdentity {
  /** Paused, and without a listener: attach your own in the same tick, then resume. */
  readonly socket: net.Socket | tls.TLSSocket;
  /** Bytes that came behind the last ReadyForQuery: to be read before the socket's. */
  readonly leftover: Buffer;
  /** For cancel requests; 0 and an empty buffer when the server gave none. */
  readonly processId: number;
  readonly secretKey: Buffer;
  /** pg_stat_activity.backend_start in microseconds since the epoch; null unless `readBackendStart`. */
  readonly backendStart: string | null;
  /** Every ParameterStatus, by its name as sent; the last value counts. */
  readonly parameters: Map<string, string>;
  /** E.g. `15.7 (Debian 15.7-1)`; '' when the server did not say. */
  readonly serverVersion: string;
  /** E.g. 150007 as in PG_VERSION_NUM; 0 when the server did not say. */
  readonly serverVersionNumber: number;
  readonly encrypted: boolean;
}

/** Logs in. Rejects with ServerLoginError (with anything else only for a mistake of ours); the socket is destroyed then. */
export async function openServerConnection(
  target: ServerTarget,
  options: OpenServerOptions,
): Promise<OpenedServer> {
  for (const name of FORBIDDEN_PARAMETERS) {
    assert(!Object.hasOwn(target.startupParameters, name), `startup parameter ${name} is not allowed`);
  }
  const unixSocket = target.host.startsWith('/');
  const peer = unixSocket ? `"${target.host}"` : `"${target.host}", port ${target.port}`;
  const channel = new LoginChannel(connectSocket(target, unixSocket), peer);
  const timer = startDeadline(channel, target.connectTimeoutMs);
  const onAbort = (): void => channel.fail(channel.error('unreachable', 'the login was given up'));
  options.signal?.addEventListener('abort', onAbort, { once: true });
  if (options.signal?.aborted) onAbort();
  try {
    return await new ServerLogin(channel, target, options.scramKeys, unixSocket).run();
  } catch (error) {
    const failure = asLoginError(error, channel);
    channel.fail(failure);
    throw failure;
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener('abort', onAbort);
  }
}

/** Infinity, and what setTimeout would turn into one millisecond, is no deadline. */
function startDeadline(channel: LoginChannel, timeoutMs: number): NodeJS.Timeout | undefined {
  if (timeoutMs > TIMER_MS_MAX) return undefined;
  return setTimeout(() => {
    channel.fail(channel.error('timeout', `the server did not answer within ${timeoutMs} ms`));
  }, timeoutMs);
}

function connectSocket(target: ServerTarget, unixSocket: boolean): net.Socket {
  const common = {
    noDelay: true,
    keepAlive: target.keepalive.enabled,
    keepAliveInitialDelay: target.keepalive.initialDelayMs,
  };
  if (unixSocket) return net.connect({ ...common, path: `${target.host}/.s.PGSQL.${target.port}` });
  return net.connect({ ...common, host: target.host, port: target.port });
}

function asLoginError(error: unknown, channel: LoginChannel): ServerLoginError {
  if (error instanceof ServerLoginError) return error;
  if (!(error instanceof PgError)) {
    // A mistake of ours: it goes on as it is, but not with an open socket behind it.
    channel.fail(channel.error('unreachable', 'the login was broken off'));
    throw error;
  }
  // Not a fault of the server's messages: it wants a SASL mechanism that we do not have.
  const kind = error.code === SqlState.FeatureNotSupported ? 'refused' : 'protocol';
  return channel.error(kind, error.message, error);
}

/** One login, step by step. Lives only inside openServerConnection. */
class ServerLogin {
  readonly #channel: LoginChannel;
  readonly #target: ServerTarget;
  readonly #scramKeys: ScramKeys;
  readonly #unixSocket: boolean;
  readonly #parameters = new Map<string, string>();
  #processId = 0;
  #secretKey: Buffer = Buffer.alloc(0);

  constructor(channel: LoginChannel, target: ServerTarget, scramKeys: ScramKeys, unixSocket: boolean) {
    this.#channel = channel;
    this.#target = target;
    this.#scramKeys = scramKeys;
    this.#unixSocket = unixSocket;
  }

  async run(): Promise<OpenedServer> {
    await this.#channel.connected();
    await this.#secure();
    const { startupParameters, user, database } = this.#target;
    const parameters = { client_encoding: 'UTF8', ...startupParameters, user, database };
    this.#channel.write(encodeStartup(parameters));
    await this.#authenticate();
    await this.#untilReady();
    // Only the login's own user may read it, so before any other role is taken.
    const backendStart = this.#target.readBackendStart === true ? await this.#readBackendStart() : null;
    const identity = await this.#identify();
    const serverVersion = this.#parameters.get('server_version') ?? '';
    return {
      ...identity,
      socket: this.#channel.socket,
      leftover: this.#channel.release(),
      processId: this.#processId,
      secretKey: this.#secretKey,
      backendStart,
      parameters: this.#parameters,
      serverVersion,
      serverVersionNumber: versionNumber(serverVersion),
      encrypted: this.#channel.socket instanceof tls.TLSSocket,
    };
  }

  /** TLS by SSLRequest. As in libpq a Unix socket never has it: PostgreSQL does not offer it there. */
  async #secure(): Promise<void> {
    const { tls: options, host, backendIdentity } = this.#target;
    const byCertificate = backendIdentity === 'login_map';
    if (byCertificate && (!options.clientCertificate || options.mode === 'disabled' || this.#unixSocket)) {
      throw this.#channel.error('tls', 'login_map needs TLS, and tls_server_certificate to show');
    }
    if (options.mode === 'disabled' || this.#unixSocket) return;
    this.#channel.write(SSL_REQUEST);
    const answer = await this.#channel.readAnswerByte();
    if (answer === TYPE_SSL_ACCEPTED) {
      // A handshake that fails is never retried in the clear, in `prefer` neither: that would be a downgrade
      // that anybody on the way can cause.
      await this.#channel.upgrade((socket) => startServerTls(socket, host, options));
      return;
    }
    if (answer === TYPE_SSL_REFUSED) {
      if (options.mode === 'prefer' && !byCertificate) return;
      throw this.#channel.error('tls', 'the server does not offer TLS');
    }
    // An error text at this point is unauthenticated (CVE-2024-10977): it is not shown.
    throw this.#channel.error('tls', 'the server did not understand the request for TLS');
  }

  /** Reads up to AuthenticationOk. One method is answered, once: a second request would be a downgrade. */
  async #authenticate(): Promise<void> {
    const first = await this.#nextAuthentication();
    if (this.#target.backendIdentity === 'login_map' && first.kind !== 'ok') {
      throw this.#ownRefusal(
        'the server asks for more than the certificate: no line of its pg_hba.conf with the method cert is for this role',
      );
    }
    if (this.#target.backendIdentity === 'login_password' && REVEALING_METHODS.includes(first.kind)) {
      // PostgreSQL holds a SCRAM verifier, so only somebody in its place asks in another way.
      throw this.#ownRefusal(
        'the server does not ask by SCRAM, and a derived password is proved by nothing else',
      );
    }
    switch (first.kind) {
      case 'ok':
        return;
      case 'sasl':
        await this.#scram(first.mechanisms);
        break;
      case 'cleartext':
        this.#answerCleartext();
        break;
      case 'md5':
        this.#channel.write(
          encodePassword(md5Response(this.#target.user, this.#password().reveal(), first.salt)),
        );
        break;
      default:
        throw this.#ownRefusal('the server asks for an authentication method that is not supported');
    }
    await this.#expectAuthentication('ok');
  }

  /** SCRAM to its end: AuthenticationOk counts only after the server proved that it knows the password. */
  async #scram(mechanisms: string[]): Promise<void> {
    const certificateHash = channelBindingOf(this.#channel.socket);
    const password = this.#password();
    const scram = new ScramClient({ keys: this.#scramKeys, password, mechanisms, certificateHash });
    this.#channel.write(encodeSASLInitialResponse(scram.mechanism, scram.first()));
    const challenge = await this.#expectAuthentication('sasl-continue');
    this.#channel.write(encodeSASLResponse(await this.#channel.during(scram.answer(challenge.data))));
    scram.finish((await this.#expectAuthentication('sasl-final')).data);
  }

  async #expectAuthentication<K extends Authentication['kind']>(
    kind: K,
  ): Promise<Extract<Authentication, { kind: K }>> {
    const request = await this.#nextAuthentication();
    if (request.kind === kind) return request as Extract<Authentication, { kind: K }>;
    throw this.#channel.error('protocol', 'the server breaks the order of the authentication');
  }

  async #nextAuthentication(): Promise<Authentication> {
    for (;;) {
      const message = await this.#channel.readMessage();
      if (message.type === BackendMessage.AuthenticationRequest) {
        return decodeAuthentication(message.buffer, message.start, message.end);
      }
      if (message.type === BackendMessage.ErrorResponse) throw this.#refusal(message);
      if (message.type !== BackendMessage.NoticeResponse) throw this.#unexpected(message);
    }
  }

  #answerCleartext(): void {
    if (!this.#privatePeer()) {
      throw this.#ownRefusal('the server asks for the password in clear text over an unencrypted connection');
    }
    this.#channel.write(encodePassword(this.#password().reveal()));
  }

  #password(): Secret {
    const { password } = this.#target;
    if (password === null || password.reveal() === '') {
      throw this.#ownRefusal('the server asks for a password and none is configured');
    }
    if (password.reveal().includes('\0')) throw this.#ownRefusal('the configured password holds a NUL byte');
    return password;
  }

  /** Nobody on a network can listen: TLS, a Unix socket, or the same machine. */
  #privatePeer(): boolean {
    const { socket } = this.#channel;
    return this.#unixSocket || socket instanceof tls.TLSSocket || isLoopback(socket.remoteAddress ?? '');
  }

  /** ParameterStatus, BackendKeyData and notices up to the first ReadyForQuery. */
  async #untilReady(): Promise<void> {
    for (;;) {
      const message = await this.#channel.readMessage();
      if (this.#absorb(message)) continue;
      const { type, buffer, start, end } = message;
      if (type === BackendMessage.BackendKeyData) {
        const key = decodeBackendKeyData(buffer, start, end);
        this.#processId = key.processId;
        this.#secretKey = key.secretKey;
        continue;
      }
      if (type === BackendMessage.ErrorResponse) throw this.#refusal(message);
      if (type !== BackendMessage.ReadyForQuery) throw this.#unexpected(message);
      this.#expectIdle(message);
      return;
    }
  }

  /** What signatures over claims are bound to besides the process id, which PostgreSQL uses again. */
  async #readBackendStart(): Promise<string> {
    this.#channel.write(BACKEND_START_REQUEST);
    let start: string | null | undefined;
    for (;;) {
      const message = await this.#channel.readMessage();
      if (this.#absorb(message)) continue;
      const { type, buffer, start: at, end } = message;
      if (type === BackendMessage.ErrorResponse) throw this.#refusal(message, 'identity');
      if (type === BackendMessage.ReadyForQuery) {
        this.#expectIdle(message);
        break;
      }
      if (type === BackendMessage.DataRow) start = decodeDataRow(buffer, at, end)[0];
    }
    if (typeof start === 'string' && /^\d{1,20}$/.test(start)) return start;
    throw this.#channel.error('identity', 'the server does not say when the connection began');
  }

  /** Takes the role and learns who we are; one round trip. */
  async #identify(): Promise<ServerIdentity> {
    const { user, setRole, backendIdentity, loginGroup } = this.#target;
    // A role that logs in as itself may have settings that make it another (ALTER ROLE … SET role).
    const roleSetting = setRole ?? (backendIdentity === null ? null : 'none');
    if (setRole?.includes('\0'))
      throw this.#channel.error('identity', 'a role name must not hold a NUL byte');
    this.#channel.write(encodeIdentityRequest(roleSetting, loginGroup));
    const rows: (string | null)[][] = [];
    const commandCount = identityCommandCount(roleSetting);
    let completed = 0;
    for (;;) {
      const message = await this.#channel.readMessage();
      if (this.#absorb(message)) continue;
      const { type, buffer, start, end } = message;
      if (type === BackendMessage.ErrorResponse) throw this.#refusal(message, 'identity');
      if (type === BackendMessage.ReadyForQuery) {
        this.#expectIdle(message);
        break;
      }
      if (type === BackendMessage.CommandComplete) completed++;
      else if (type === BackendMessage.DataRow) {
        // Only the last command's rows describe roles, and those are at most two.
        if (completed === commandCount - 1) rows.push(decodeDataRow(buffer, start, end));
        if (rows.length > 2) throw this.#unexpected(message);
      } else if (type !== BackendMessage.ParseComplete && type !== BackendMessage.BindComplete) {
        throw this.#unexpected(message);
      }
    }
    if (completed !== commandCount) {
      throw this.#channel.error('protocol', 'the server did not run the check of the role to its end');
    }
    const identity = readIdentity(rows, user, setRole, loginGroup);
    if (typeof identity === 'string') throw this.#channel.error('identity', identity);
    return identity;
  }

  /** Messages that may come at any time. Returns false for all others. */
  #absorb({ type, buffer, start, end }: LoginMessage): boolean {
    if (type === BackendMessage.NoticeResponse || type === BackendMessage.NotificationResponse) return true;
    if (type !== BackendMessage.ParameterStatus) return false;
    const { name, value } = decodeParameterStatus(buffer, start, end);
    this.#parameters.set(name, value);
    if (this.#parameters.size > PARAMETER_COUNT_MAX) {
      throw this.#channel.error('protocol', 'the server reports too many parameters');
    }
    return true;
  }

  #expectIdle({ buffer, start, end }: LoginMessage): void {
    if (decodeReadyForQuery(buffer, start, end) !== TxStatus.Idle) {
      throw this.#channel.error('protocol', 'the server reports a transaction that nobody began');
    }
  }

  /** PostgreSQL's own error. Its texts are the server's; a password that it echoes is taken out. */
  #refusal({ buffer, start, end }: LoginMessage, kind: 'refused' | 'identity' = 'refused'): ServerLoginError {
    const error = pgErrorFromFields(decodeErrorFields(buffer, start, end));
    const password = this.#target.password?.reveal() ?? '';
    const clean = (text: string): string => (password === '' ? text : text.replaceAll(password, '****'));
    return new ServerLoginError({
      kind,
      code: error.code,
      message: clean(error.message),
      detail: error.detail === undefined ? undefined : clean(error.detail),
      hint: error.hint === undefined ? undefined : clean(error.hint),
      fromServer: true,
    });
  }

  #ownRefusal(message: string): ServerLoginError {
    return this.#channel.error('refused', message);
  }

  #unexpected(message: LoginMessage): ServerLoginError {
    const type = message.type.toString(16).padStart(2, '0');
    return this.#channel.error('protocol', `the server sent an unexpected message of type 0x${type}`);
  }
}

/** 127.0.0.0/8 and ::1, also as IPv4-mapped. */
function isLoopback(address: string): boolean {
  return address === '::1' || /^(?:::ffff:)?127\./.test(address);
}

/** `15.7 (Debian …)` → 150007, `18beta1` → 180000, `9.6.24` → 90624. */
function versionNumber(version: string): number {
  const match = /^(\d{1,3})(?:\.(\d{1,3}))?(?:\.(\d{1,3}))?/.exec(version);
  if (match === null) return 0;
  const [major, minor, patch] = [1, 2, 3].map((group) => Number(match[group] ?? 0)) as [
    number,
    number,
    number,
  ];
  return major >= 10 ? major * 10_000 + minor : major * 10_000 + minor * 100 + patch;
}

const BACKEND_START_REQUEST: Buffer = Buffer.concat([
  encodeParse(
    '',
    `SELECT (pg_catalog.date_part('epoch', a.backend_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
 FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) AS a`,
  ),
  encodeBind('', '', []),
  encodeExecute(''),
  SYNC,
]);
