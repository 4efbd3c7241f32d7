/**
 * The numbers of PostgreSQL's frontend/backend protocol, named as in src/include/libpq/protocol.h and pqcomm.h.
 * Numbers only: what a message holds is the business of the encoders and decoders beside this file.
 */

/** Type bytes of messages from a client (PostgreSQL manual, "Message Formats", F). */
export const FrontendMessage = {
  Bind: 0x42,
  Close: 0x43,
  Describe: 0x44,
  Execute: 0x45,
  FunctionCall: 0x46,
  Flush: 0x48,
  Parse: 0x50,
  Query: 0x51,
  Sync: 0x53,
  Terminate: 0x58,
  CopyDone: 0x63,
  CopyData: 0x64,
  CopyFail: 0x66,
  /** One byte, four meanings; which one it is follows from the authentication request it answers. */
  GSSResponse: 0x70,
  PasswordMessage: 0x70,
  SASLInitialResponse: 0x70,
  SASLResponse: 0x70,
} as const;
export type FrontendMessage = (typeof FrontendMessage)[keyof typeof FrontendMessage];

/** Type bytes of messages from a server (PostgreSQL manual, "Message Formats", B). */
export const BackendMessage = {
  ParseComplete: 0x31,
  BindComplete: 0x32,
  CloseComplete: 0x33,
  NotificationResponse: 0x41,
  CommandComplete: 0x43,
  DataRow: 0x44,
  ErrorResponse: 0x45,
  CopyInResponse: 0x47,
  CopyOutResponse: 0x48,
  EmptyQueryResponse: 0x49,
  BackendKeyData: 0x4b,
  NoticeResponse: 0x4e,
  AuthenticationRequest: 0x52,
  ParameterStatus: 0x53,
  RowDescription: 0x54,
  FunctionCallResponse: 0x56,
  CopyBothResponse: 0x57,
  ReadyForQuery: 0x5a,
  CopyDone: 0x63,
  CopyData: 0x64,
  NoData: 0x6e,
  PortalSuspended: 0x73,
  ParameterDescription: 0x74,
  NegotiateProtocolVersion: 0x76,
} as const;
export type BackendMessage = (typeof BackendMessage)[keyof typeof BackendMessage];

/** The status byte of ReadyForQuery: 'I', 'T', 'E'. */
export const TxStatus = { Idle: 0x49, InTransaction: 0x54, Failed: 0x45 } as const;
export type TxStatus = (typeof TxStatus)[keyof typeof TxStatus];

/** Codes that stand where a startup packet has its protocol version (pqcomm.h: major 1234). */
export const RequestCode = {
  CancelRequest: 80877102,
  SSLRequest: 80877103,
  GSSENCRequest: 80877104,
} as const;
export type RequestCode = (typeof RequestCode)[keyof typeof RequestCode];

/** Protocol versions as they stand on the wire: major in the upper, minor in the lower 16 bits. */
export const ProtocolVersion = { V3_0: 0x0003_0000, V3_2: 0x0003_0002 } as const;
export type ProtocolVersion = (typeof ProtocolVersion)[keyof typeof ProtocolVersion];

/** What an AuthenticationRequest asks for (protocol.h, AUTH_REQ_*). */
export const AuthenticationRequest = {
  Ok: 0,
  KerberosV4: 1,
  KerberosV5: 2,
  CleartextPassword: 3,
  CryptPassword: 4,
  MD5Password: 5,
  GSS: 7,
  GSSContinue: 8,
  SSPI: 9,
  SASL: 10,
  SASLContinue: 11,
  SASLFinal: 12,
} as const;
export type AuthenticationRequest = (typeof AuthenticationRequest)[keyof typeof AuthenticationRequest];

/** What Describe and Close name: 'S', a prepared statement, or 'P', a portal. */
export const DescribeTarget = { Statement: 0x53, Portal: 0x50 } as const;
export type DescribeTarget = (typeof DescribeTarget)[keyof typeof DescribeTarget];

/** Bytes before the body of a typed message: its type and its length. */
export const HEADER_BYTES = 5;
/** Shortest and longest secret of BackendKeyData (4 in protocol 3.0, up to 256 since 3.2). */
export const SECRET_KEY_BYTES_MIN = 4;
export const SECRET_KEY_BYTES_MAX = 256;
/** The longest startup packet a server reads (PostgreSQL's MAX_STARTUP_PACKET_LENGTH). */
export const STARTUP_PACKET_BYTES_MAX = 10_000;
