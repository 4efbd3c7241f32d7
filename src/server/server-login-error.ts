/**
 * Why a server connection did not come up, in a form that a pool can act on and a client may read. It must never
 * hold a password, not even one that a server echoes back.
 */
import { PgError, SqlState } from '../protocol/pg-error.ts';

/**
 * - `unreachable`: no connection, or it broke before the end of the login.
 * - `timeout`: connectTimeoutMs went by.
 * - `tls`: no encryption where it is asked for, a handshake that failed, a certificate that is not trusted.
 * - `refused`: PostgreSQL's own ErrorResponse, or a proof that we cannot or will not give.
 * - `identity`: logged in, but not as the session user and the role that were expected.
 * - `protocol`: bytes that PostgreSQL does not send.
 */
export type ServerLoginErrorKind = 'unreachable' | 'timeout' | 'tls' | 'refused' | 'identity' | 'protocol';

const CODE_OF_KIND: Readonly<Record<ServerLoginErrorKind, string>> = {
  unreachable: SqlState.ConnectionFailure,
  timeout: SqlState.ConnectionFailure,
  tls: SqlState.ConnectionFailure,
  refused: SqlState.InvalidAuthorizationSpecification,
  identity: SqlState.InvalidAuthorizationSpecification,
  protocol: SqlState.ProtocolViolation,
};

/** What a client reads when PostgreSQL itself said nothing: no host, no port, no address of ours. */
const WORDS_OF_KIND: Readonly<Record<ServerLoginErrorKind, string>> = {
  unreachable: 'could not connect to the database server',
  timeout: 'could not connect to the database server in time',
  tls: 'could not connect to the database server: encryption failed',
  refused: 'could not log in at the database server',
  identity: 'the database server did not grant the expected role',
  protocol: 'the database server broke the protocol during login',
};

export interface ServerLoginErrorOptions {
  kind: ServerLoginErrorKind;
  message: string;
  /** SQLSTATE; by default one that fits the kind. */
  code?: string | undefined;
  detail?: string | undefined;
  hint?: string | undefined;
  /** True when code, message, detail and hint are PostgreSQL's own words. */
  fromServer?: boolean;
  cause?: unknown;
}

/**
 * A failed login at a server. `fromServer` tells PostgreSQL's own ErrorResponse from our own words, which name the
 * server and are for the log.
 */
export class ServerLoginError extends Error {
  override name = 'ServerLoginError';
  readonly kind: ServerLoginErrorKind;
  readonly code: string;
  readonly detail: string | undefined;
  readonly hint: string | undefined;
  readonly fromServer: boolean;

  constructor(options: ServerLoginErrorOptions) {
    super(options.message, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = options.kind;
    this.code = options.code ?? CODE_OF_KIND[options.kind];
    this.detail = options.detail;
    this.hint = options.hint;
    this.fromServer = options.fromServer ?? false;
  }

  /**
   * What a client that waits for a server connection is told: PostgreSQL's own words, or one sentence by kind. Safe
   * to retry, since no byte of a request was sent.
   */
  toPgError(severity: 'ERROR' | 'FATAL' = 'FATAL'): PgError {
    return new PgError({
      code: this.code,
      message: this.fromServer ? this.message : WORDS_OF_KIND[this.kind],
      severity,
      reason: `server_${this.kind}`,
      safeToRetry: true,
      cause: this,
      ...(this.detail === undefined ? {} : { detail: this.detail }),
      ...(this.hint === undefined ? {} : { hint: this.hint }),
    });
  }
}
