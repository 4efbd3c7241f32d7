/**
 * The one error of the house: what the client is told, in PostgreSQL's own terms (SQLSTATE, one calm sentence),
 * and what dies with it. The reason code is for the log only; neither may hold a secret.
 */

/** SQLSTATEs that pgturnstile raises itself (PostgreSQL manual, appendix A). */
export const SqlState = {
  ConnectionException: '08000',
  ConnectionDoesNotExist: '08003',
  ConnectionFailure: '08006',
  ProtocolViolation: '08P01',
  FeatureNotSupported: '0A000',
  InvalidTransactionState: '25000',
  ActiveSqlTransaction: '25001',
  InFailedSqlTransaction: '25P02',
  ReadOnlySqlTransaction: '25006',
  IdleInTransactionSessionTimeout: '25P03',
  InvalidSqlStatementName: '26000',
  DuplicatePreparedStatement: '42P05',
  InvalidAuthorizationSpecification: '28000',
  InvalidPassword: '28P01',
  InvalidCatalogName: '3D000',
  InsufficientPrivilege: '42501',
  UndefinedObject: '42704',
  SyntaxError: '42601',
  InvalidParameterValue: '22023',
  TooManyConnections: '53300',
  OutOfMemory: '53200',
  ProgramLimitExceeded: '54000',
  StatementTooComplex: '54001',
  ConfigFileError: 'F0000',
  QueryCanceled: '57014',
  AdminShutdown: '57P01',
  CannotConnectNow: '57P03',
  IdleSessionTimeout: '57P05',
  InternalError: 'XX000',
} as const;

export interface PgErrorOptions {
  /** SQLSTATE, five characters. */
  code: string;
  /** One sentence for the client, in PostgreSQL's style: no capital, no full stop. */
  message: string;
  detail?: string;
  hint?: string;
  /** ERROR keeps the session (default), FATAL ends it. */
  severity?: 'ERROR' | 'FATAL';
  /** A short code for the log, e.g. `expired`. Never a secret. */
  reason?: string;
  /** True when no byte of the request was sent to PostgreSQL (default false). */
  safeToRetry?: boolean;
  cause?: unknown;
}

export class PgError extends Error {
  override name = 'PgError';
  readonly code: string;
  readonly severity: 'ERROR' | 'FATAL';
  readonly detail: string | undefined;
  readonly hint: string | undefined;
  readonly reason: string | undefined;
  readonly safeToRetry: boolean;

  constructor(options: PgErrorOptions) {
    super(options.message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = options.code;
    this.severity = options.severity ?? 'ERROR';
    this.detail = options.detail;
    this.hint = options.hint;
    this.reason = options.reason;
    this.safeToRetry = options.safeToRetry ?? false;
  }
}
