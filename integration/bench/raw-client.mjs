/**
 * A PostgreSQL client of few bytes and little work, so that a measurement measures the other side: logs in without
 * TLS (trust or cleartext), runs one simple query at a time, can drain a result without looking at it. Must not know
 * what is measured. Protocol: PostgreSQL manual, "Message Formats".
 */
import { connect } from 'node:net';

const PROTOCOL_3_0 = 196_608;
const AUTHENTICATION_OK = 0;
const AUTHENTICATION_CLEARTEXT = 3;
/** ReadyForQuery outside a transaction: what ends a drained result. */
const READY_IDLE = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);
const HELD_BYTES_MAX = 1024 * 1024;

/**
 * One buffer for all sockets of the process: libuv fills it and calls back before it reads the next socket, and
 * nothing here keeps a view of it.
 */
const READ_BUFFER = Buffer.allocUnsafeSlow(256 * 1024);

/** @typedef {{ host: string, port: number, user: string, database: string, password: string }} Target */

export class RawClient {
  /** @type {import('node:net').Socket} */
  #socket;
  #password;
  #held = Buffer.alloc(0);
  #drainedBytes = -1;
  #tail = Buffer.alloc(0);
  /** @type {((value: number) => void) | null} */
  #resolve = null;
  /** @type {((error: Error) => void) | null} */
  #reject = null;

  /** Use `RawClient.open`. @param {Target} target */
  constructor(target) {
    this.#password = target.password;
    const { host, port } = target;
    this.#socket = connect({
      host,
      port,
      noDelay: true,
      onread: {
        buffer: READ_BUFFER,
        callback: (size, buffer) => {
          this.#onBytes(/** @type {Buffer} */ (buffer).subarray(0, size));
          return true;
        },
      },
    });
    this.#socket.on('connect', () => this.#socket.write(encodeStartup(target)));
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.on('close', () => this.#fail(new Error('the connection was closed')));
  }

  /**
   * Resolves when the server is ready for a query.
   * @param {Target} target
   * @returns {Promise<RawClient>}
   */
  static async open(target) {
    const client = new RawClient(target);
    await client.#answer();
    return client;
  }

  /** Resolves at ReadyForQuery; rejects with the server's message. @param {string} sql */
  query(sql) {
    this.#socket.write(encodeQuery(sql));
    return this.#answer();
  }

  /**
   * Counts the bytes of the whole answer and looks at nothing but its end, so the result must not hold the bytes of
   * a ReadyForQuery at the end of a segment. An error looks like a short answer: compare the number.
   * @param {string} sql
   */
  drain(sql) {
    this.#drainedBytes = 0;
    this.#tail = Buffer.alloc(0);
    this.#socket.write(encodeQuery(sql));
    return this.#answer();
  }

  close() {
    this.#socket.removeAllListeners('close');
    this.#socket.end(Buffer.from([0x58, 0, 0, 0, 4]));
  }

  /** @returns {Promise<number>} */
  #answer() {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** @param {Buffer} bytes Valid until the next read. */
  #onBytes(bytes) {
    if (this.#drainedBytes >= 0) return this.#count(bytes);
    this.#held = Buffer.concat([this.#held, bytes]);
    if (this.#held.length > HELD_BYTES_MAX) return this.#fail(new Error('the answer is too long'));
    let offset = 0;
    while (this.#held.length - offset >= 5) {
      const end = offset + 1 + this.#held.readUInt32BE(offset + 1);
      if (end > this.#held.length) break;
      this.#onMessage(this.#held[offset] ?? 0, this.#held.subarray(offset + 5, end));
      offset = end;
    }
    this.#held = offset === this.#held.length ? Buffer.alloc(0) : Buffer.from(this.#held.subarray(offset));
  }

  /**
   * @param {number} type
   * @param {Buffer} body
   */
  #onMessage(type, body) {
    if (type === 0x5a) this.#settle(0);
    else if (type === 0x45) this.#fail(new Error(errorMessage(body)));
    else if (type === 0x52) {
      const kind = body.readInt32BE(0);
      if (kind === AUTHENTICATION_CLEARTEXT) this.#socket.write(encodeMessage(0x70, `${this.#password}\0`));
      else if (kind !== AUTHENTICATION_OK)
        this.#fail(new Error(`authentication request ${kind} is not supported`));
    }
  }

  /** @param {Buffer} bytes */
  #count(bytes) {
    this.#drainedBytes += bytes.length;
    const size = READY_IDLE.length;
    this.#tail =
      bytes.length >= size
        ? Buffer.from(bytes.subarray(bytes.length - size))
        : Buffer.concat([this.#tail, bytes]).subarray(-size);
    if (!this.#tail.equals(READY_IDLE)) return;
    const total = this.#drainedBytes;
    this.#drainedBytes = -1;
    this.#settle(total);
  }

  /** @param {number} value */
  #settle(value) {
    const resolve = this.#resolve;
    this.#resolve = null;
    this.#reject = null;
    resolve?.(value);
  }

  /** @param {Error} error */
  #fail(error) {
    const reject = this.#reject;
    this.#resolve = null;
    this.#reject = null;
    this.#socket.destroy();
    reject?.(error);
  }
}

/** @param {Target} target */
function encodeStartup({ user, database }) {
  const text = Buffer.from(`user\0${user}\0database\0${database}\0\0`);
  const head = Buffer.alloc(8);
  head.writeInt32BE(text.length + 8, 0);
  head.writeInt32BE(PROTOCOL_3_0, 4);
  return Buffer.concat([head, text]);
}

/** @param {string} sql */
function encodeQuery(sql) {
  return encodeMessage(0x51, `${sql}\0`);
}

/**
 * @param {number} type
 * @param {string} text
 */
function encodeMessage(type, text) {
  const body = Buffer.from(text);
  const head = Buffer.alloc(5);
  head[0] = type;
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

/** The fields of an ErrorResponse are a type byte and a string each: C is the SQLSTATE, M the message. @param {Buffer} body */
function errorMessage(body) {
  const fields = body.toString('utf8').split('\0');
  const field = (/** @type {string} */ type) => fields.find((text) => text.startsWith(type))?.slice(1) ?? '';
  return `${field('C')} ${field('M')}`;
}
