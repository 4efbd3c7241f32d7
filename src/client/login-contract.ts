/**
 * What a login is given and what it gives: the context that all logins share, and the interfaces of those behind
 * it, which the composition root implements. Types only.
 */
import type { Identity, TokenFacts } from '../auth/identity.ts';
import type { ScramKeys } from '../auth/scram-keys.ts';
import type { VerifiedToken } from '../auth/token-verifier.ts';
import type { Config } from '../config/config.ts';
import type { ServerCertificate } from '../net/tls.ts';
import type { Wire } from '../net/wire.ts';
import type { StartupPacket } from '../protocol/startup-packet.ts';

/** A client that has proved who it is and waits for AuthenticationOk. */
export interface LoginResult {
  /** Quiet: the client has sent nothing beyond its proof. */
  readonly wire: Wire;
  readonly startup: StartupPacket;
  /** Null for the admin console. */
  readonly identity: Identity | null;
  /** The console's user; null for everybody else. */
  readonly adminUser: string | null;
  /** When the token that opened the console expires, milliseconds since the epoch; null without one. */
  readonly adminUntilMs: number | null;
  /** The token that opened the console; null without one. */
  readonly adminToken: TokenFacts | null;
  readonly tlsInUse: boolean;
}

/** What lies behind the login; implemented by the composition root. */
export interface LoginTarget {
  /** Clients that were handed over and are not gone; they count towards `max_clients`. */
  readonly sessionCount: number;
  /** Takes the client over. The wire's handler must be replaced before this returns. */
  onLogin(result: LoginResult): void;
  /** Cancels what the key names, if anything. The client's socket closes when the promise settles. */
  onCancel(processId: number, secret: Buffer): Promise<void>;
}

/** The part of a TokenAuthority that a login needs. */
export interface TokenCheck {
  /**
   * Rejects with `TokenRejected` when the token is bad, or when nothing can be said of it now. `mayCheck` is asked
   * just before a signature is checked; false refuses the token as `overloaded`.
   */
  verify(token: string, nowMs: number, mayCheck?: () => boolean): Promise<VerifiedToken>;
  /** What `verify` would say of a token whose signature was good a moment ago; null when that has to be waited for. */
  recall(token: string, nowMs: number): VerifiedToken | null;
  /** True for a token whose signature was good a moment ago, so that `verify` costs no arithmetic. */
  isVerified(token: string, nowMs: number): boolean;
}

/** The part of the logger that a login needs. */
export interface LoginLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** What all logins share. A reload makes a new one; logins under way keep theirs. */
export interface LoginContext {
  readonly config: Config;
  /** Null: TLS is not offered. */
  readonly certificate: ServerCertificate | null;
  /** Null when nobody is asked for a token. */
  readonly verifier: TokenCheck | null;
  readonly scramKeys: ScramKeys;
  readonly target: LoginTarget;
  readonly log: LoginLog;
  /** Milliseconds since the epoch, for the tokens. */
  readonly now: () => number;
  /** Milliseconds that only go forward, for the budgets; `performance.now` when absent. */
  readonly clock?: () => number;
}
