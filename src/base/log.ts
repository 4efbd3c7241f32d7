/**
 * The log: pino, in the three formats of PgDog's log_format. Owns the shape of a line and the list of field names
 * whose values never appear. Must not know what is logged. Lines are written synchronously, so that the last words
 * before an exit are there; text is escaped, so that one event is one line whatever a client put into it.
 */
import pino from 'pino';

/** pino's logger; `log.info({ database, user }, 'message')`. */
export type Logger = pino.Logger;
export type LogFormat = 'text' | 'json' | 'json_flattened';
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';

/** Where finished lines go, each with its line end. */
export interface LogDestination {
  write(line: string): unknown;
}

export interface LoggerOptions {
  format: LogFormat;
  level: LogLevel;
  /** Standard output by default. */
  destination?: LogDestination;
}

/** Fields that hold a secret by their name, at the top level, one and two levels down. */
const SECRET_FIELDS: readonly string[] = [
  'token',
  'jwt',
  'password',
  'passwords',
  'passphrase',
  'secret',
  'serverPassword',
  'server_password',
  'jwt_server_password',
  'privateKey',
  'privateKeyPem',
  'authorization',
  'secretKey',
  'cancelKey',
];

/** A logger that writes one line per event. */
export function createLogger(options: LoggerOptions): Logger {
  const destination = options.destination ?? pino.destination({ dest: 1, sync: true });
  const render = options.format === 'text' ? renderText : options.format === 'json' ? renderNested : null;
  const stream = render === null ? destination : { write: (line: string) => destination.write(render(line)) };
  return pino(
    {
      level: options.level,
      base: null,
      messageKey: 'message',
      timestamp: () => `,"timestamp":"${new Date().toISOString()}"`,
      formatters: { level: (level) => ({ level }) },
      serializers: { err: serializeError, error: serializeError },
      redact: {
        paths: SECRET_FIELDS.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]),
        censor: '****',
      },
    },
    stream as pino.DestinationStream,
  );
}

/**
 * What of an error is worth a log line. Not its other properties: libraries hang the payload of a token or the
 * parameters of a query on their errors.
 */
function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return typeof error === 'string' ? error : 'not an Error';
  const { code, reason } = error as { code?: unknown; reason?: unknown };
  return {
    type: error.name,
    message: error.message,
    ...(typeof code === 'string' ? { code } : {}),
    ...(typeof reason === 'string' ? { reason } : {}),
    stack: error.stack ?? '',
  };
}

type Fields = Record<string, unknown>;

/** `{"timestamp", "level", "fields": {"message", …}}`, as Rust's tracing nests them. */
function renderNested(line: string): string {
  const { timestamp, level, message, ...fields } = JSON.parse(line) as Fields;
  return `${JSON.stringify({ timestamp, level, fields: { message, ...fields } })}\n`;
}

/** `2026-01-31T12:00:00.000Z INFO  message key=value key="two words"`. */
function renderText(line: string): string {
  const { timestamp, level, message, ...fields } = JSON.parse(line) as Fields;
  const head = `${timestamp} ${String(level).toUpperCase().padEnd(5)} ${escapeControls(String(message ?? ''))}`;
  const isSevere = level === 'error' || level === 'fatal';
  const parts = Object.entries(fields).map(
    ([key, value]) => ` ${escapeControls(key)}=${fieldText(value, isSevere)}`,
  );
  return `${head}${parts.join('')}\n`;
}

function fieldText(value: unknown, isSevere: boolean): string {
  if (typeof value === 'string') {
    return /^[\w.:@/+*-]+$/.test(value) ? value : escapeControls(JSON.stringify(value));
  }
  if (typeof value !== 'object' || value === null || !('stack' in value)) {
    return escapeControls(JSON.stringify(value));
  }
  // An error: its sentence always, its stack only where somebody will have to look for a bug.
  const { stack, message, code } = value as Fields;
  const sentence = `${message}${code === undefined ? '' : ` (${code})`}`;
  return escapeControls(JSON.stringify(isSevere ? `${sentence} ${stack}` : sentence));
}

/** What JSON leaves as it is and a terminal or a line reader would act on. */
function escapeControls(text: string): string {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
