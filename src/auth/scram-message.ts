/** The text of SCRAM messages (RFC 5802 section 7), common to both sides: attributes, nonces, base64. Pure. */
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** A SCRAM message of either side; real ones have less than 300 bytes. */
export const SCRAM_MESSAGE_BYTES_MAX = 4_096;

/** A message that breaks the grammar: 08P01, with a reason code for the log. Never quotes the message. */
export function malformedScram(detail: string): PgError {
  return new PgError({
    code: SqlState.ProtocolViolation,
    severity: 'FATAL',
    message: 'malformed SCRAM message',
    detail,
    reason: 'scram_malformed',
  });
}

/** The message as text; it must be UTF-8 without NUL, and short. */
export function decodeScramText(message: Buffer): string {
  if (message.length === 0) throw malformedScram('The message is empty.');
  if (message.length > SCRAM_MESSAGE_BYTES_MAX) throw malformedScram('The message is too long.');
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(message);
    if (!text.includes('\0')) return text;
  } catch {
    // Told below in the same words.
  }
  throw malformedScram('The message is not text.');
}

/** The attributes of a message in their order; each is a letter, `=` and a value without a comma. */
export function splitAttributes(text: string): [name: string, value: string][] {
  return text.split(',').map((attribute) => {
    if (!/^[A-Za-z]=/.test(attribute)) throw malformedScram('An attribute was expected.');
    return [attribute[0]!, attribute.slice(2)];
  });
}

/** The value of the attribute at `index`, which must be `name`. */
export function attributeAt(attributes: [string, string][], index: number, name: string): string {
  const attribute = attributes[index];
  if (attribute?.[0] !== name) throw malformedScram(`The attribute "${name}" was expected.`);
  return attribute[1];
}

/** Printable ASCII but the comma, at least one character. */
export function isNonce(text: string): boolean {
  return /^[\x21-\x2b\x2d-\x7e]+$/.test(text);
}

/** Strict base64 with padding; null for anything else. */
export function tryDecodeBase64(text: string): Buffer | null {
  const bytes = Buffer.from(text, 'base64');
  return bytes.toString('base64') === text ? bytes : null;
}
