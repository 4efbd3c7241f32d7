/**
 * One socket during the login at a server: connect, upgrade to TLS, read whole messages within bounds, hand over.
 * It knows bytes, deadlines and sizes, not what the messages mean. The socket flows only while somebody waits for
 * bytes, so a hostile server cannot fill memory; every failure destroys it.
 */
import type net from 'node:net';
import type tls from 'node:tls';
import { HEADER_BYTES } from '../protocol/codes.ts';
import { ServerLoginError, type ServerLoginErrorKind } from './server-login-error.ts';

/** No message of a login is longer; PostgreSQL's are a few hundred bytes. */
export const LOGIN_MESSAGE_BYTES_MAX: number = 64 * 1024;
/** All messages of one login together. Endless notices end here. */
export const LOGIN_TOTAL_BYTES_MAX: number = 1024 * 1024;
export const LOGIN_MESSAGE_COUNT_MAX = 2_000;

/** One message; the body is `buffer[start, end)`. Valid until the next read. */
export interface LoginMessage {
  readonly type: number;
  readonly buffer: Buffer;
  readonly start: number;
  readonly end: number;
}

/** Invariant: at most one wait at a time; after the first failure every wait rejects with it. */
export class LoginChannel {
  #socket: net.Socket | tls.TLSSocket;
  #chunks: Buffer[] = [];
  #size = 0;
  #messageCount = 0;
  #byteCount = 0;
  #failure: ServerLoginError | null = null;
  #wake: (() => void) | null = null;
  #refuse: ((error: ServerLoginError) => void) | null = null;
  #phase: ServerLoginErrorKind = 'unreachable';
  readonly #peer: string;
  readonly #onData = (chunk: Buffer): void => {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    this.#socket.pause();
    this.#wake?.();
  };
  readonly #onError = (error: Error): void => {
    const words = this.#phase === 'tls' ? 'TLS with the server' : 'connection to the server';
    this.fail(this.error(this.#phase, `${words} failed: ${reasonOf(error)}`, error));
  };
  readonly #onClosed = (): void => {
    this.fail(this.error(this.#phase, 'the server closed the connection unexpectedly'));
  };

  /** `peer` names the server in errors, e.g. `"db", port 5432`. The socket may still be connecting. */
  constructor(socket: net.Socket, peer: string) {
    this.#socket = socket;
    this.#peer = peer;
    this.#listen();
  }

  get socket(): net.Socket | tls.TLSSocket {
    return this.#socket;
  }

  /** Ends the login: the socket is destroyed and whoever waits gets the error. Only the first failure counts. */
  fail(error: ServerLoginError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.#socket.destroy();
    this.#refuse?.(error);
  }

  /** An error that names the server. */
  error(kind: ServerLoginErrorKind, message: string, cause?: unknown): ServerLoginError {
    return new ServerLoginError({ kind, message: `${message} (server ${this.#peer})`, cause });
  }

  /** Waits for the TCP or Unix connection. */
  async connected(): Promise<void> {
    await this.#wait('connect');
  }

  /** Goes on over TLS: `upgraded` wraps the socket so far; waits for the end of the handshake. */
  async upgrade(upgraded: (socket: net.Socket) => tls.TLSSocket): Promise<tls.TLSSocket> {
    this.#phase = 'tls';
    const raw = this.#socket as net.Socket;
    this.#ignore();
    // Whatever the raw socket still reports comes to the TLS socket too; unheard, it would end the process.
    raw.on('error', () => {});
    let secured: tls.TLSSocket;
    try {
      secured = upgraded(raw);
    } catch (error) {
      this.#onError(error as Error);
      throw this.#failure;
    }
    this.#socket = secured;
    this.#listen();
    await this.#wait('secureConnect');
    this.#phase = 'unreachable';
    return secured;
  }

  /** The single answer byte to SSLRequest. Bytes behind it were not sent by an honest server (CVE-2021-23214). */
  async readAnswerByte(): Promise<number> {
    await this.#ensure(1);
    if (this.#size + this.#socket.readableLength > 1) {
      throw this.error('protocol', 'unencrypted bytes follow the answer to SSLRequest');
    }
    const byte = this.#chunks[0]![0]!;
    this.#chunks = [];
    this.#size = 0;
    return byte;
  }

  /** The next message. Lengths below 4 or past a bound, and too many messages, are a `protocol` failure. */
  async readMessage(): Promise<LoginMessage> {
    await this.#ensure(HEADER_BYTES);
    const header = this.#chunks[0]!;
    const byteCount = header.readInt32BE(1) + 1;
    if (byteCount < HEADER_BYTES || byteCount > LOGIN_MESSAGE_BYTES_MAX) {
      throw this.error('protocol', 'the server sent a message of a length that no login has');
    }
    this.#messageCount++;
    this.#byteCount += byteCount;
    if (this.#messageCount > LOGIN_MESSAGE_COUNT_MAX || this.#byteCount > LOGIN_TOTAL_BYTES_MAX) {
      throw this.error('protocol', 'the server does not come to the end of the login');
    }
    await this.#ensure(byteCount);
    const buffer = this.#chunks[0]!;
    this.#size -= byteCount;
    if (buffer.length === byteCount) this.#chunks.shift();
    else this.#chunks[0] = buffer.subarray(byteCount);
    return { type: buffer[0]!, buffer, start: HEADER_BYTES, end: byteCount };
  }

  write(bytes: Buffer): void {
    if (this.#failure === null) this.#socket.write(bytes);
  }

  /** Waits for work that is not the server's, a key derivation; a failure of the channel ends the wait. */
  async during<T>(work: Promise<T>): Promise<T> {
    return await this.#orFailure<T>((resolve, reject) => {
      work.then(resolve, reject);
    });
  }

  /** Lets go of the socket: paused, without a listener of ours. Returns a copy of the bytes not yet read. */
  release(): Buffer {
    if (this.#failure !== null) throw this.#failure;
    this.#ignore();
    this.#socket.pause();
    return Buffer.concat(this.#chunks, this.#size);
  }

  /** Waits until `byteCount` bytes are there, and in the first chunk. */
  async #ensure(byteCount: number): Promise<void> {
    while (this.#size < byteCount) {
      const more = this.#wait(null);
      this.#socket.resume();
      await more;
    }
    // Joined once per message, however small its pieces were.
    if (this.#chunks[0]!.length < byteCount) this.#chunks = [Buffer.concat(this.#chunks, this.#size)];
  }

  /** Waits for an event of the socket, or for bytes when `event` is null. */
  async #wait(event: 'connect' | 'secureConnect' | null): Promise<void> {
    await this.#orFailure<void>((resolve) => {
      if (event === null) this.#wake = resolve;
      else this.#socket.once(event, resolve);
    });
  }

  /** A promise that the first failure rejects, whatever else it waits for. */
  async #orFailure<T>(
    start: (resolve: (value: T) => void, reject: (error: unknown) => void) => void,
  ): Promise<T> {
    if (this.#failure !== null) throw this.#failure;
    try {
      return await new Promise<T>((resolve, reject) => {
        this.#refuse = reject;
        start(resolve, reject);
      });
    } finally {
      this.#wake = null;
      this.#refuse = null;
    }
  }

  #listen(): void {
    this.#socket.pause();
    this.#socket.on('data', this.#onData);
    this.#socket.on('error', this.#onError);
    this.#socket.on('end', this.#onClosed);
    this.#socket.on('close', this.#onClosed);
  }

  #ignore(): void {
    this.#socket.off('data', this.#onData);
    this.#socket.off('error', this.#onError);
    this.#socket.off('end', this.#onClosed);
    this.#socket.off('close', this.#onClosed);
  }
}

/** Node's words for a socket or TLS error; several addresses that all failed are one AggregateError without any. */
function reasonOf(error: Error): string {
  if (error instanceof AggregateError && error.message === '') {
    return error.errors.map((each) => (each as Error).message).join(', ');
  }
  return error.message;
}
