/**
 * Puts together the messages of a login, one at a time, from pieces of any size. Owns the limits: a message is
 * refused by its header alone, and memory grows with what came, not with what was announced. It does not know what
 * the messages mean.
 */
import { FrontendMessage, HEADER_BYTES } from '../protocol/codes.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { checkStartupPacketLength } from '../protocol/startup-packet.ts';
import { fatal } from './login-errors.ts';

const LENGTH_BYTES = 4;
const CAPACITY_BYTES = 256;
const NO_BYTES: Buffer = Buffer.alloc(0);

/** PostgreSQL's words for what it waits for (auth.c, auth-sasl.c). */
export type ResponseName = 'password' | 'SASL';

/** Invariant: never holds a byte beyond the message it waits for. */
export class LoginReader {
  /** Made for a message that comes in pieces. */
  #bytes: Buffer = NO_BYTES;
  #length = 0;
  /** Bytes up to which the message is known: its header first, then its whole. */
  #needed: number = LENGTH_BYTES;
  #headerBytes: number = LENGTH_BYTES;
  #responseBytesMax = 0;
  #responseName: ResponseName = 'password';

  /** The next message is a first packet: no type, 8 to 10,000 bytes. */
  expectFirstPacket(): void {
    this.#expect(LENGTH_BYTES, 0);
  }

  /**
   * The next message answers an authentication request; its declared length is at most `bytesMax`. `name` is what an
   * error calls it.
   */
  expectResponse(bytesMax: number, name: ResponseName = 'password'): void {
    this.#responseName = name;
    this.#expect(HEADER_BYTES, bytesMax);
  }

  /** Takes what belongs to the message and returns the offset behind it. Throws FATAL 08P01. */
  push(buffer: Buffer, start: number, end: number): number {
    let at = start;
    // Most messages come whole, so that their size is known before a byte is copied.
    if (this.#length === 0 && this.#needed === this.#headerBytes && end - at >= this.#headerBytes) {
      this.#needed = this.#readHeader(buffer, at);
      const count = Math.min(end - at, this.#needed);
      this.#bytes = Buffer.allocUnsafe(count);
      this.#length = buffer.copy(this.#bytes, 0, at, at + count);
      at += count;
    }
    while (at < end && this.#length < this.#needed) {
      const count = Math.min(end - at, this.#needed - this.#length);
      this.#reserve(this.#length + count);
      buffer.copy(this.#bytes, this.#length, at, at + count);
      this.#length += count;
      at += count;
      if (this.#length === this.#headerBytes) this.#needed = this.#readHeader(this.#bytes, 0);
    }
    return at;
  }

  /** The whole message, header included, once it is there; the caller owns the bytes. Else null. */
  tryTake(): Buffer | null {
    if (this.#length < this.#needed) return null;
    const message = this.#bytes.subarray(0, this.#length);
    this.#bytes = NO_BYTES;
    this.#length = 0;
    this.#needed = this.#headerBytes;
    return message;
  }

  #expect(headerBytes: number, bytesMax: number): void {
    this.#headerBytes = headerBytes;
    this.#needed = headerBytes;
    this.#responseBytesMax = bytesMax;
    this.#length = 0;
  }

  /** Bytes of the whole message. */
  #readHeader(bytes: Buffer, at: number): number {
    const declared = bytes.readInt32BE(at + this.#headerBytes - LENGTH_BYTES);
    if (this.#headerBytes === LENGTH_BYTES) {
      checkStartupPacketLength(declared);
      return declared;
    }
    const type = bytes[at] as number;
    if (type !== FrontendMessage.PasswordMessage) {
      throw fatal(
        SqlState.ProtocolViolation,
        `expected ${this.#responseName} response, got message type ${type}`,
        'unexpected_message',
      );
    }
    if (declared < LENGTH_BYTES || declared > this.#responseBytesMax) {
      throw fatal(
        SqlState.ProtocolViolation,
        `invalid length of ${this.#responseName} response`,
        'response_length',
      );
    }
    return declared + 1;
  }

  #reserve(byteCount: number): void {
    if (byteCount <= this.#bytes.length) return;
    const wanted = Math.max(byteCount, this.#bytes.length * 2, CAPACITY_BYTES);
    const grown = Buffer.allocUnsafeSlow(Math.max(byteCount, Math.min(this.#needed, wanted)));
    this.#bytes.copy(grown, 0, 0, this.#length);
    this.#bytes = grown;
  }
}
