/**
 * One client from its first byte to the proof of who it is: TLS, cancel requests, the startup packet, and the
 * password, token or SCRAM exchange (PostgreSQL manual, "Start-up"). It ends in `LoginTarget.onLogin`, in
 * `onCancel`, or in one FATAL ErrorResponse and a closed socket. AuthenticationOk is the target's: only it knows
 * whether PostgreSQL takes the role. What any proof is worth is decided in auth/ and login-rules.ts.
 */
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { harmlessText } from '../auth/harmless-text.ts';
import { TokenRejected } from '../auth/token-rejected.ts';
import { assert } from '../base/assert.ts';
import { type PeerCertificate, peerCertificateOf } from '../net/peer-certificate.ts';
import { ALPN_POSTGRESQL, TLS_HANDSHAKE_BYTE } from '../net/tls.ts';
import { Wire, type WireHandler } from '../net/wire.ts';
import { ProtocolVersion } from '../protocol/codes.ts';
import { encodeErrorResponse, encodeNegotiateProtocolVersion } from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { decodeFirstPacket, type StartupPacket } from '../protocol/startup-packet.ts';
import type { LoginBudget } from './login-budget.ts';
import type { LoginContext } from './login-contract.ts';
import {
  earlyBytes,
  fatal,
  internalError,
  overloaded,
  passwordFailed,
  repeated,
  temporarilyUnavailable,
} from './login-errors.ts';
import type { LoginRequest } from './login-identity.ts';
import { askForProof, type ProofHost, type Proven, type TokenTraits } from './login-proofs.ts';
import { LoginReader, type ResponseName } from './login-reader.ts';
import { type LoginPlan, type LoginRules, mayAskInClear, sendsSecretInClear } from './login-rules.ts';
import { askForBearer, askForSecret } from './login-tokens.ts';

const ANSWER_TLS: Buffer = Buffer.from('S');
const ANSWER_NO: Buffer = Buffer.from('N');
/** A fatal handshake_failure alert (RFC 8446 section 6), the one refusal that a TLS client can read. */
const TLS_REFUSAL: Buffer = Buffer.from('15030300020228', 'hex');
/** Refusals that count as a failed proof of its address. A bad token or password is always `InvalidPassword`. */
const FAILED_PROOFS: ReadonlySet<string> = new Set(['client_certificate', 'certificate_user']);

/** Whoever counts the logins; implemented by the listener. */
export interface LoginHost {
  readonly budget: LoginBudget;
  /** Called once a client has said that it wants a session. An error means that it cannot have one now. */
  admit(login: ClientLogin): PgError | null;
  /** The login is over, in whatever way. Called once, before the target hears of the client. */
  onOver(login: ClientLogin): void;
}

type LoginState = 'startup' | 'tls' | 'proof' | 'verifying' | 'cancelling' | 'over';

const NEXT: Readonly<Record<LoginState, readonly LoginState[]>> = {
  startup: ['tls', 'proof', 'cancelling', 'over'],
  tls: ['startup', 'over'],
  proof: ['proof', 'verifying', 'over'],
  verifying: ['proof', 'over'],
  cancelling: ['over'],
  over: [],
};

/**
 * Invariants: at most one message is awaited at a time and a byte behind it is a violation, so nothing a client
 * sends early can pass as said after the proof; what is written in all fits a socket's buffer, so a client that
 * does not read holds no memory; `over` is final and reached once.
 */
export class ClientLogin implements WireHandler, ProofHost {
  readonly context: LoginContext;
  readonly #rules: LoginRules;
  readonly #host: LoginHost;
  readonly #wire: Wire;
  readonly #reader = new LoginReader();
  #state: LoginState = 'startup';
  #heard = false;
  #sslAnswered = false;
  #gssencAnswered = false;
  #startup: StartupPacket | null = null;
  #request: LoginRequest | null = null;
  /** Takes the next message while the state is `proof`. */
  #onAnswer: ((message: Buffer) => void) | null = null;
  /** What is known of a refused token, for the log. */
  #tokenTraits: TokenTraits | null = null;
  /** The refusal is in the log already; what follows it on the wire is no second one. */
  #refusalNoted = false;

  /** Takes over an accepted, paused socket. `readBuffer` may be shared by all logins of a thread. */
  constructor(
    socket: Socket,
    readBuffer: Buffer,
    setup: { readonly context: LoginContext; readonly rules: LoginRules },
    host: LoginHost,
  ) {
    this.context = setup.context;
    this.#rules = setup.rules;
    this.#host = host;
    this.#wire = Wire.adopt(socket, this, readBuffer);
  }

  /** '' when there is none. */
  get remoteAddress(): string {
    return this.#wire.remoteAddress;
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
    const { log } = this.context;
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
    const onAnswer = this.#onAnswer;
    assert(this.#state === 'proof' && onAnswer !== null, 'a message came in a state that reads none');
    this.#onAnswer = null;
    onAnswer(message);
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
    if (this.context.certificate === null) {
      this.#wire.write(ANSWER_NO);
      this.#reader.expectFirstPacket();
      return;
    }
    this.#wire.write(ANSWER_TLS);
    this.#beginTls(Buffer.alloc(0), false);
  }

  /** `direct`: the handshake came without SSLRequest (PostgreSQL 17, sslnegotiation=direct). */
  #beginTls(clientHello: Buffer, direct: boolean): void {
    const { certificate } = this.context;
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
    this.context.target.onCancel(processId, secret).then(close, (error: unknown) => {
      this.context.log.error({ ...this.#who(), err: error }, 'cancel_failed');
      close();
    });
  }

  #begin(startup: StartupPacket): void {
    this.#startup = startup;
    const { config } = this.context;
    const busy = this.#host.admit(this);
    if (busy !== null) throw busy;
    this.#request = {
      user: startup.user,
      database: startup.database,
      remoteAddress: this.#wire.remoteAddress,
      encrypted: this.#wire.encrypted,
      certificate: this.#peerCertificate(),
    };
    const plan = this.#rules.plan(this.#request);
    const refused =
      !this.#wire.encrypted &&
      (config.general.tlsClientRequired ||
        (sendsSecretInClear(plan) &&
          !mayAskInClear(this.#wire.remoteAddress, config.turnstile.allowPlaintextTokens)));
    if (refused && plan.kind !== 'reject') {
      throw fatal(SqlState.InvalidAuthorizationSpecification, 'SSL connection is required', 'tls_required');
    }
    if (startup.newerProtocolAsked || startup.unknownExtensions.length > 0) {
      // Never a higher version than was asked for: libpq takes that for an attack.
      const version = ProtocolVersion.V3_0 + startup.protocolMinor;
      this.#wire.write(encodeNegotiateProtocolVersion(version, startup.unknownExtensions));
    }
    this.#askForProof(plan);
  }

  #askForProof(plan: LoginPlan): void {
    if (plan.kind === 'token') askForSecret(this, plan);
    else if (plan.kind === 'oauth') askForBearer(this, plan.console);
    else askForProof(this, plan);
  }

  #peerCertificate(): PeerCertificate | null {
    const { tlsSocket } = this.#wire;
    return tlsSocket === null ? null : peerCertificateOf(tlsSocket);
  }

  // ---- ProofHost -------------------------------------------------------------------------------------------

  get budget(): LoginBudget {
    return this.#host.budget;
  }

  get request(): LoginRequest {
    assert(this.#request !== null, 'there is no proof before the startup packet');
    return this.#request;
  }

  ask(
    request: Uint8Array,
    bytesMax: number,
    onAnswer: (message: Buffer) => void,
    name: ResponseName = 'SASL',
  ): void {
    this.#move('proof');
    this.#onAnswer = onAnswer;
    this.#reader.expectResponse(bytesMax, name);
    this.#wire.write(request);
  }

  wait<T>(outcome: Promise<T>, step: (value: T) => void, onError?: (error: PgError) => void): void {
    this.#move('verifying');
    const { remoteAddress } = this.#wire;
    const refuse = (error: unknown): void => {
      // Who leaves before the verdict has cost as much as one who waits for it, and guesses no less.
      if (this.#state === 'over' && error instanceof TokenRejected && error.kind === 'invalid') {
        this.#host.budget.onFailure(remoteAddress);
      }
      this.#guard(() => {
        const refusal = this.#toPgError(error);
        if (onError === undefined) throw refusal;
        onError(refusal);
      });
    };
    outcome.then((value) => {
      if (this.#state === 'over') return;
      try {
        step(value);
      } catch (error) {
        refuse(error);
      }
    }, refuse);
  }

  write(bytes: Uint8Array): void {
    this.#wire.write(bytes);
  }

  describeToken(traits: TokenTraits): void {
    this.#tokenTraits = traits;
  }

  noteRefusal(error: PgError): void {
    this.#logRefusal(error);
    this.#host.budget.onFailure(this.#wire.remoteAddress);
    this.#refusalNoted = true;
  }

  noteDiscovery(): void {
    this.context.log.info(this.#who(), 'oauth_discovery');
    this.#refusalNoted = true;
  }

  succeed(proven: Proven): void {
    const startup = this.#startup as StartupPacket;
    const { target, log } = this.context;
    const wire = this.#wire;
    const { identity, adminUntilMs } = proven;
    const adminUser = identity === null ? (proven.adminUser ?? startup.user) : null;
    this.#finish();
    try {
      target.onLogin({
        wire,
        startup,
        identity,
        adminUser,
        adminUntilMs,
        adminToken: proven.adminToken ?? null,
        tlsInUse: wire.encrypted,
      });
    } catch (error) {
      // A fault of ours, past the login: nobody else would tell the client.
      log.error({ ...this.#who(), err: error }, 'login_hand_over_failed');
      wire.end(encodeErrorResponse(internalError(error), { severity: 'FATAL' }));
    }
  }

  // ---- the end ---------------------------------------------------------------------------------------------

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
      this.#tokenTraits = { alg: error.algorithm, kid: error.keyId, iss: error.issuer };
      if (error.kind === 'invalid') return passwordFailed(this.request.user, error.reason);
      return error.kind === 'overloaded' ? overloaded(error.reason) : temporarilyUnavailable(error.reason);
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
    const isFailure = error.code === SqlState.InvalidPassword || FAILED_PROOFS.has(error.reason ?? '');
    if (isFailure) this.#host.budget.onFailure(this.#wire.remoteAddress);
    if (!this.#refusalNoted) this.#logRefusal(error);
    this.#finish();
  }

  #logRefusal(error: PgError): void {
    const { log } = this.context;
    const fields = { ...this.#who(), reason: error.reason ?? 'unspecified', code: error.code };
    if (error.code === SqlState.InternalError) log.error({ ...fields, err: error.cause }, 'login_failed');
    // A storm that is turned away unread is no news of anybody's proof.
    else if (this.#request === null || error.code === SqlState.TooManyConnections) {
      log.info(fields, 'login_refused');
    } else log.warn({ ...fields, ...this.#tokenTraits }, 'auth_reject');
  }

  #who(): { peer: string; startup_user?: string; database?: string } {
    const { remoteAddress, remotePort } = this.#wire;
    const peer = remoteAddress.includes(':')
      ? `[${remoteAddress}]:${remotePort}`
      : `${remoteAddress}:${remotePort}`;
    if (this.#startup === null) return { peer };
    const { user, database } = this.#startup;
    return { peer, startup_user: harmlessText(user), database: harmlessText(database) };
  }

  #finish(): void {
    this.#move('over');
    this.#host.onOver(this);
  }

  #move(to: LoginState): void {
    if (!NEXT[this.#state].includes(to)) assert(false, `a login cannot go from ${this.#state} to ${to}`);
    this.#state = to;
  }
}
