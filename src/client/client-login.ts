/**
 * One client from its first byte to the proof of who it is: TLS, cancel requests, the startup packet, and the
 * password, token or SCRAM exchange (PostgreSQL manual, "Start-up"). It ends in `LoginTarget.onLogin`, in
 * `onCancel`, or in one FATAL ErrorResponse and a closed socket. AuthenticationOk is the target's: only it knows
 * whether PostgreSQL takes the role. What any proof is worth is decided in auth/ and login-rules.ts.
 */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { harmlessText } from '../auth/harmless-text.ts';
import type { Identity } from '../auth/identity.ts';
import { MD5_SALT_BYTES, verifyMd5, verifyPlain } from '../auth/password.ts';
import { SCRAM_MESSAGE_BYTES_MAX } from '../auth/scram-message.ts';
import { SCRAM_SHA_256, ScramServer } from '../auth/scram-server.ts';
import { identityFromToken } from '../auth/token-identity.ts';
import { TokenRejected } from '../auth/token-rejected.ts';
import { assert } from '../base/assert.ts';
import { ALPN_POSTGRESQL, TLS_HANDSHAKE_BYTE } from '../net/tls.ts';
import { Wire, type WireHandler } from '../net/wire.ts';
import { HEADER_BYTES, ProtocolVersion } from '../protocol/codes.ts';
import { decodePassword, decodeSASLInitialResponse } from '../protocol/frontend-messages.ts';
import {
  encodeAuthenticationCleartextPassword,
  encodeAuthenticationMD5Password,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
  encodeAuthenticationSASLFinal,
  encodeErrorResponse,
  encodeNegotiateProtocolVersion,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { decodeFirstPacket, type StartupPacket } from '../protocol/startup-packet.ts';
import type { LoginContext } from './login-contract.ts';
import {
  earlyBytes,
  fatal,
  internalError,
  passwordFailed,
  repeated,
  temporarilyUnavailable,
} from './login-errors.ts';
import { LoginReader } from './login-reader.ts';
import {
  identityFromUser,
  type LoginPlan,
  mayAskInClear,
  planLogin,
  sendsSecretInClear,
} from './login-rules.ts';

/** Declared length of a PasswordMessage; tokens end at 16 KiB, which token-form.ts sees to. */
export const PASSWORD_MESSAGE_BYTES_MAX: number = 64 * 1024;
/** Mechanism name and length beside the SCRAM text itself. */
const SASL_MESSAGE_BYTES_MAX: number = SCRAM_MESSAGE_BYTES_MAX + 64;

const ANSWER_TLS: Buffer = Buffer.from('S');
const ANSWER_NO: Buffer = Buffer.from('N');
/** A fatal handshake_failure alert (RFC 8446 section 6), the one refusal that a TLS client can read. */
const TLS_REFUSAL: Buffer = Buffer.from('15030300020228', 'hex');

/** Whoever counts the logins; implemented by the listener. */
export interface LoginHost {
  /** Called once a client has said that it wants a session. An error means that it cannot have one now. */
  admit(login: ClientLogin): PgError | null;
  /** The login is over, in whatever way. Called once, before the target hears of the client. */
  onOver(login: ClientLogin): void;
}

type LoginState =
  | 'startup'
  | 'tls'
  | 'password'
  | 'sasl_initial'
  | 'sasl_final'
  | 'verifying'
  | 'cancelling'
  | 'over';

const NEXT: Readonly<Record<LoginState, readonly LoginState[]>> = {
  startup: ['tls', 'password', 'sasl_initial', 'cancelling', 'over'],
  tls: ['startup', 'over'],
  password: ['verifying', 'over'],
  sasl_initial: ['sasl_final', 'over'],
  sasl_final: ['verifying', 'over'],
  verifying: ['over'],
  cancelling: ['over'],
  over: [],
};

/**
 * Invariants: at most one message is awaited at a time and a byte behind it is a violation, so nothing a client
 * sends early can pass as said after the proof; what is written in all fits a socket's buffer, so a client that
 * does not read holds no memory; `over` is final and reached once.
 */
export class ClientLogin implements WireHandler {
  readonly #context: LoginContext;
  readonly #host: LoginHost;
  readonly #wire: Wire;
  readonly #reader = new LoginReader();
  #state: LoginState = 'startup';
  #heard = false;
  #sslAnswered = false;
  #gssencAnswered = false;
  #startup: StartupPacket | null = null;
  #plan: LoginPlan | null = null;
  #scram: ScramServer | null = null;
  #md5Salt: Buffer | null = null;
  /** What is known of a refused token, for the log. */
  #tokenFacts: { alg: string | null; kid: string | null; role?: string } | null = null;

  /** Takes over an accepted, paused socket. `readBuffer` may be shared by all logins of a thread. */
  constructor(socket: Socket, readBuffer: Buffer, context: LoginContext, host: LoginHost) {
    this.#context = context;
    this.#host = host;
    this.#wire = Wire.adopt(socket, this, readBuffer);
  }

  /** Refuses the login from outside: a drain. Before the startup packet there is nobody to tell. */
  refuse(error: PgError): void {
    this.#fail(error);
  }

  /** The login took longer than `client_login_timeout`. */
  expire(): void {
    if (this.#state === 'cancelling') {
      this.#finish();
      this.#wire.destroy();
      return;
    }
    this.#fail(fatal(SqlState.QueryCanceled, 'canceling authentication due to timeout', 'login_timeout'));
  }

  onBytes(buffer: Buffer, start: number, end: number): void {
    this.#guard(() => this.#read(buffer, start, end));
  }

  onDrain(): void {}

  onClose(error: Error | null): void {
    if (this.#state === 'over') return;
    const { log } = this.#context;
    const fields = { ...this.#who(), state: this.#state, ...(error !== null && { err: error }) };
    const tlsFault = this.#state === 'tls' && error !== null && 'library' in error;
    this.#finish();
    // Health checks connect and leave, psql leaves to ask for the password: no fault of anybody. A handshake that
    // OpenSSL gave up is one, and the client may not know why.
    if (tlsFault) log.info({ ...fields, reason: 'tls_handshake' }, 'login_refused');
    else log.debug({ ...fields, heard: this.#heard }, 'client_left_during_login');
  }

  #read(buffer: Buffer, start: number, end: number): void {
    if (!this.#heard) {
      this.#heard = true;
      if (buffer[start] === TLS_HANDSHAKE_BYTE) {
        this.#beginTls(Buffer.from(buffer.subarray(start, end)), true);
        return;
      }
    }
    // Nothing is read behind a CancelRequest, as in PostgreSQL.
    if (this.#state === 'over' || this.#state === 'cancelling') return;
    if (this.#state === 'verifying' || this.#state === 'tls') throw earlyBytes();
    const at = this.#reader.push(buffer, start, end);
    const message = this.#reader.tryTake();
    if (message !== null) this.#onMessage(message, end - at);
  }

  #onMessage(message: Buffer, bytesBehind: number): void {
    if (this.#state === 'startup') {
      this.#onFirstPacket(message, bytesBehind);
      return;
    }
    if (bytesBehind > 0) throw earlyBytes();
    switch (this.#state) {
      case 'password':
        this.#onPassword(decodePassword(message, HEADER_BYTES, message.length));
        return;
      case 'sasl_initial':
        this.#onSaslInitial(message);
        return;
      default:
        assert(this.#state === 'sasl_final', 'a message came in a state that reads none');
        this.#onSaslFinal(message.subarray(HEADER_BYTES));
    }
  }

  #onFirstPacket(message: Buffer, bytesBehind: number): void {
    const packet = decodeFirstPacket(message, 0, message.length);
    // CVE-2021-23214: what lies behind a request for encryption must never be read as if it had come encrypted.
    if (bytesBehind > 0 && packet.kind !== 'cancel') throw earlyBytes();
    switch (packet.kind) {
      case 'ssl':
        this.#onSslRequest();
        return;
      case 'gssenc':
        if (this.#gssencAnswered || this.#wire.encrypted) throw repeated('GSSENCRequest');
        this.#gssencAnswered = true;
        this.#wire.write(ANSWER_NO);
        this.#reader.expectFirstPacket();
        return;
      case 'cancel':
        this.#cancel(packet.processId, packet.secret);
        return;
      case 'startup':
        this.#begin(packet.startup);
        return;
      default:
        packet satisfies never;
    }
  }

  #onSslRequest(): void {
    if (this.#sslAnswered || this.#wire.encrypted) throw repeated('SSLRequest');
    this.#sslAnswered = true;
    if (this.#context.certificate === null) {
      this.#wire.write(ANSWER_NO);
      this.#reader.expectFirstPacket();
      return;
    }
    this.#wire.write(ANSWER_TLS);
    this.#beginTls(Buffer.alloc(0), false);
  }

  /** `direct`: the handshake came without SSLRequest (PostgreSQL 17, sslnegotiation=direct). */
  #beginTls(clientHello: Buffer, direct: boolean): void {
    const { certificate } = this.#context;
    if (certificate === null) {
      this.#reject(fatal(SqlState.ProtocolViolation, 'TLS is not configured', 'direct_tls_not_configured'));
      this.#wire.end(TLS_REFUSAL);
      return;
    }
    this.#move('tls');
    const secure = this.#wire.upgrade((socket) => certificate.accept(socket), clientHello);
    secure.once('secure', () => this.#guard(() => this.#onSecure(secure, direct)));
  }

  #onSecure(secure: TLSSocket, direct: boolean): void {
    this.#move('startup');
    // Without it a server of another protocol could be made to speak ours (PostgreSQL manual, "SSL Session
    // Encryption"); a client that asked for a wrong one was refused by TLS itself.
    if (direct && secure.alpnProtocol !== ALPN_POSTGRESQL) {
      throw fatal(
        SqlState.ProtocolViolation,
        `direct TLS connections must negotiate the ALPN protocol "${ALPN_POSTGRESQL}"`,
        'alpn_missing',
      );
    }
    this.#reader.expectFirstPacket();
  }

  #cancel(processId: number, secret: Buffer): void {
    this.#move('cancelling');
    const close = (): void => {
      if (this.#state === 'over') return;
      this.#finish();
      this.#wire.end();
    };
    this.#context.target.onCancel(processId, secret).then(close, (error: unknown) => {
      this.#context.log.error({ ...this.#who(), err: error }, 'cancel_failed');
      close();
    });
  }

  #begin(startup: StartupPacket): void {
    this.#startup = startup;
    const { config } = this.#context;
    const busy = this.#host.admit(this);
    if (busy !== null) throw busy;
    const plan = planLogin(startup, config);
    this.#plan = plan;
    const inClear = !this.#wire.encrypted;
    const refused =
      inClear &&
      (config.general.tlsClientRequired ||
        (sendsSecretInClear(plan) &&
          !mayAskInClear(this.#wire.remoteAddress, config.turnstile.allowPlaintextTokens)));
    if (refused) {
      throw fatal(SqlState.InvalidAuthorizationSpecification, 'SSL connection is required', 'tls_required');
    }
    if (startup.newerProtocolAsked || startup.unknownExtensions.length > 0) {
      // Never a higher version than was asked for: libpq takes that for an attack.
      const version = ProtocolVersion.V3_0 + startup.protocolMinor;
      this.#wire.write(encodeNegotiateProtocolVersion(version, startup.unknownExtensions));
    }
    this.#askForProof(startup, plan);
  }

  #askForProof(startup: StartupPacket, plan: LoginPlan): void {
    switch (plan.kind) {
      case 'trust':
        this.#succeed(identityFromUser(startup, this.#context.config, 'trust'));
        return;
      case 'scram': {
        const { user } = startup;
        this.#scram = new ScramServer({ keys: this.#context.scramKeys, user, passwords: plan.passwords });
        this.#move('sasl_initial');
        this.#reader.expectResponse(SASL_MESSAGE_BYTES_MAX);
        this.#wire.write(encodeAuthenticationSASL([SCRAM_SHA_256]));
        return;
      }
      case 'md5':
        this.#md5Salt = randomBytes(MD5_SALT_BYTES);
        this.#askForPassword(encodeAuthenticationMD5Password(this.#md5Salt));
        return;
      case 'plain':
      case 'token':
        this.#askForPassword(encodeAuthenticationCleartextPassword());
        return;
      default:
        plan satisfies never;
    }
  }

  #askForPassword(request: Buffer): void {
    this.#move('password');
    this.#reader.expectResponse(PASSWORD_MESSAGE_BYTES_MAX);
    this.#wire.write(request);
  }

  #onPassword(password: string): void {
    const startup = this.#startup as StartupPacket;
    const plan = this.#plan as LoginPlan;
    const { config } = this.#context;
    switch (plan.kind) {
      case 'token':
        this.#verify(password, startup);
        return;
      case 'md5':
        if (!verifyMd5(password, startup.user, plan.passwords, this.#md5Salt as Buffer)) {
          throw passwordFailed(startup.user, 'wrong_password');
        }
        this.#succeed(identityFromUser(startup, config, 'md5'));
        return;
      default:
        assert(plan.kind === 'plain', 'a password came for a plan that asks for none');
        if (!verifyPlain(password, plan.passwords)) throw passwordFailed(startup.user, 'wrong_password');
        this.#succeed(identityFromUser(startup, config, 'plain'));
    }
  }

  #verify(token: string, startup: StartupPacket): void {
    const { verifier, config, now } = this.#context;
    this.#move('verifying');
    if (verifier === null) throw temporarilyUnavailable('no_verifier');
    const { user: startupUser, database } = startup;
    const outcome = verifier.verify(token, now()).catch((error: unknown) => {
      // Anything but a rejection is a fault of the check; the token is not the better for it.
      throw error instanceof TokenRejected ? error : new TokenRejected('verifier_failed');
    });
    this.#await(outcome, (verified) => {
      const { algorithm, keyId } = verified.facts;
      const kid = keyId === null ? null : harmlessText(keyId);
      this.#tokenFacts = { alg: algorithm, kid, role: harmlessText(verified.role) };
      this.#succeed(identityFromToken({ verified, config, startupUser, database }));
    });
  }

  #onSaslInitial(message: Buffer): void {
    const { mechanism, data } = decodeSASLInitialResponse(message, HEADER_BYTES, message.length);
    if (mechanism !== SCRAM_SHA_256) {
      throw fatal(
        SqlState.ProtocolViolation,
        'client selected an invalid SASL authentication mechanism',
        'sasl_mechanism',
      );
    }
    if (data === null) {
      throw fatal(SqlState.ProtocolViolation, 'SASL initial response has no data', 'sasl_no_data');
    }
    const answer = (this.#scram as ScramServer).first(data);
    this.#move('sasl_final');
    this.#reader.expectResponse(SASL_MESSAGE_BYTES_MAX);
    this.#wire.write(encodeAuthenticationSASLContinue(answer));
  }

  #onSaslFinal(data: Buffer): void {
    const startup = this.#startup as StartupPacket;
    const plan = this.#plan as LoginPlan;
    this.#move('verifying');
    this.#await((this.#scram as ScramServer).finish(data), (answer) => {
      if (answer === null) throw passwordFailed(startup.user, 'wrong_password');
      this.#wire.write(encodeAuthenticationSASLFinal(answer));
      const admin = plan.kind === 'scram' && plan.admin;
      this.#succeed(admin ? null : identityFromUser(startup, this.#context.config, 'scram'));
    });
  }

  /** `step` runs unless the login has ended meanwhile. */
  #await<T>(outcome: Promise<T>, step: (value: T) => void): void {
    outcome.then(
      (value) => this.#guard(() => step(value)),
      (error: unknown) =>
        this.#guard(() => {
          throw error;
        }),
    );
  }

  #succeed(identity: Identity | null): void {
    const startup = this.#startup as StartupPacket;
    const { target, log } = this.#context;
    const wire = this.#wire;
    const adminUser = identity === null ? startup.user : null;
    this.#finish();
    try {
      target.onLogin({ wire, startup, identity, adminUser, tlsInUse: wire.encrypted });
    } catch (error) {
      // A fault of ours, past the login: nobody else would tell the client.
      log.error({ ...this.#who(), err: error }, 'login_hand_over_failed');
      wire.end(encodeErrorResponse(internalError(error), { severity: 'FATAL' }));
    }
  }

  #guard(step: () => void): void {
    if (this.#state === 'over') return;
    try {
      step();
    } catch (error) {
      this.#fail(this.#toPgError(error));
    }
  }

  #toPgError(error: unknown): PgError {
    if (error instanceof PgError) return error;
    if (error instanceof TokenRejected) {
      this.#tokenFacts = { alg: error.algorithm, kid: error.keyId };
      return error.kind === 'invalid'
        ? passwordFailed((this.#startup as StartupPacket).user, error.reason)
        : temporarilyUnavailable(error.reason);
    }
    return internalError(error);
  }

  /** The one way to refuse: one line in the log, one ErrorResponse, the end. */
  #fail(error: PgError): void {
    if (this.#state === 'over') return;
    const handshaking = this.#state === 'tls';
    this.#reject(error);
    // Half a handshake cannot carry an error.
    if (handshaking) this.#wire.destroy();
    else this.#wire.end(encodeErrorResponse(error, { severity: 'FATAL' }));
  }

  #reject(error: PgError): void {
    const { log } = this.#context;
    const fields = { ...this.#who(), reason: error.reason ?? 'unspecified', code: error.code };
    this.#finish();
    if (error.code === SqlState.InternalError) log.error({ ...fields, err: error.cause }, 'login_failed');
    else if (this.#plan === null) log.info(fields, 'login_refused');
    else log.warn({ ...fields, ...this.#tokenFacts }, 'auth_reject');
  }

  #who(): { peer: string; user?: string; database?: string } {
    const { remoteAddress, remotePort } = this.#wire;
    const peer = remoteAddress.includes(':')
      ? `[${remoteAddress}]:${remotePort}`
      : `${remoteAddress}:${remotePort}`;
    if (this.#startup === null) return { peer };
    const { user, database } = this.#startup;
    return { peer, user: harmlessText(user), database: harmlessText(database) };
  }

  #finish(): void {
    this.#move('over');
    this.#host.onOver(this);
  }

  #move(to: LoginState): void {
    assert(NEXT[this.#state].includes(to), `a login cannot go from ${this.#state} to ${to}`);
    this.#state = to;
  }
}
