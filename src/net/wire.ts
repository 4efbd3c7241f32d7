/**
 * One TCP, Unix or TLS socket as the rest of the house sees it: bytes in as views, bytes out by `write`,
 * pause and resume for back-pressure, one `onClose`. It knows nothing of PostgreSQL's messages.
 *
 * Hot. Reads go into a buffer that is reused (`onread` of node:net): no allocation per read. What outlives the
 * callback must be copied, or the buffer be kept by `keepReadBuffer()`.
 */
import type { Buffer as NodeBuffer } from 'node:buffer';
import { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';

export const READ_BUFFER_BYTES: number = 64 * 1024;

/** Declared here, implemented by login, client session and server connection. */
export interface WireHandler {
  /** `buffer[start, end)` is valid until the callback returns. */
  onBytes(buffer: Buffer, start: number, end: number): void;
  /** The kernel took what was queued after a `write` that answered false. */
  onDrain(): void;
  /**
   * The peer is gone, the socket failed, or the handler itself threw: a fault of ours ends one connection and not
   * the process. Called once, never after `destroy()` of our own.
   */
  onClose(error: Error | null): void;
}

/** The parts of libuv's handle that a socket can be built on; absent on sockets of other makes. */
interface StreamHandle {
  useUserBuffer?: unknown;
}

/**
 * Invariants: after `onClose` or `destroy` no handler is called again; `#writeBlocked` is true exactly between a
 * `write` that answered false and the next `onDrain`.
 */
export class Wire {
  #socket: Socket;
  #handler: WireHandler;
  #readBuffer: Buffer | null;
  #readBufferKept = false;
  #paused = false;
  #writeBlocked = false;
  #closed = false;
  #error: Error | null = null;
  readonly remoteAddress: string;
  readonly remotePort: number;
  /** Bytes handed to the handler and bytes handed to the socket, for the console. */
  bytesRead = 0;
  bytesWritten = 0;

  private constructor(socket: Socket, handler: WireHandler, readBuffer: Buffer | null) {
    this.#handler = handler;
    this.#readBuffer = readBuffer;
    this.remoteAddress = socket.remoteAddress ?? '';
    this.remotePort = socket.remotePort ?? 0;
    this.#socket = socket;
    this.#attach(socket);
  }

  /**
   * Takes over a connected socket: one accepted with `pauseOnConnect`, or one whose owner paused it and took
   * his listeners away. `readBuffer` may be shared by every wire whose handler never keeps a view; null gives
   * the wire one of its own. TLS sockets bring their own buffers.
   */
  static adopt(socket: Socket, handler: WireHandler, readBuffer: Buffer | null): Wire {
    return new Wire(socket, handler, readBuffer ?? Buffer.allocUnsafeSlow(READ_BUFFER_BYTES));
  }

  /** True when what travels is encrypted. */
  get encrypted(): boolean {
    return this.#socket instanceof TLSSocket;
  }

  get tlsSocket(): TLSSocket | null {
    return this.#socket instanceof TLSSocket ? this.#socket : null;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** True while bytes wait for a peer that does not read. */
  get writeBlocked(): boolean {
    return this.#writeBlocked;
  }

  get localAddress(): string {
    return this.#socket.localAddress ?? '';
  }

  get localPort(): number {
    return this.#socket.localPort ?? 0;
  }

  setHandler(handler: WireHandler): void {
    this.#handler = handler;
  }

  /**
   * Queues bytes that nobody will change. False means: the peer is slow, stop producing until `onDrain`.
   */
  write(bytes: Uint8Array): boolean {
    if (this.#closed) return true;
    this.bytesWritten += bytes.length;
    if (this.#socket.write(bytes)) return true;
    this.#writeBlocked = true;
    return false;
  }

  /**
   * Writes a view of a buffer that will be reused. True when the kernel took every byte in the call; false when
   * the socket still refers to the buffer, which then must not be written to again.
   */
  writeView(bytes: Buffer): boolean {
    if (this.#closed) return true;
    this.bytesWritten += bytes.length;
    const flowing = this.#socket.write(bytes);
    if (!flowing) this.#writeBlocked = true;
    return this.#socket.writableLength === 0;
  }

  /** Joins the writes of one tick into one system call. */
  cork(): void {
    this.#socket.cork();
  }

  uncork(): void {
    this.#socket.uncork();
  }

  /** The handler still refers to the current read buffer: the next read gets a new one. */
  keepReadBuffer(): void {
    this.#readBufferKept = true;
  }

  pause(): void {
    if (this.#paused || this.#closed) return;
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    if (!this.#paused || this.#closed) return;
    this.#paused = false;
    this.#socket.resume();
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Replaces the plain socket by a TLS one on top of it. Bytes already read go to the TLS layer first. */
  upgrade(wrap: (socket: Socket) => TLSSocket, leftover: Buffer): TLSSocket {
    const plain = this.#socket;
    plain.removeAllListeners();
    plain.on('error', () => {});
    if (leftover.length > 0) plain.unshift(leftover);
    const secure = wrap(plain);
    this.#paused = false;
    this.#socket = secure;
    this.#listen(secure);
    return secure;
  }

  /**
   * Finishes: sends `bytes`, then waits a moment for the peer to close, so that no reset overtakes the last words.
   * The handler hears nothing more.
   */
  end(bytes?: Uint8Array): void {
    if (this.#closed) return;
    this.#closed = true;
    if (bytes !== undefined) this.bytesWritten += bytes.length;
    const socket = this.#socket;
    if (bytes === undefined) socket.end();
    else socket.end(bytes);
    // What the peer still sends is read and forgotten; one that never closes must not hold the socket for ever.
    this.#paused = false;
    socket.resume();
    const timer = setTimeout(() => socket.destroy(), END_TIMEOUT_MS).unref();
    socket.once('close', () => clearTimeout(timer));
  }

  /** The peer has taken its leave: closes at once where nothing is left to be sent. The handler hears nothing more. */
  hangUp(): void {
    // TLS has a farewell of its own.
    if (this.#socket.writableLength > 0 || this.encrypted) this.end();
    else this.destroy();
  }

  /** Closes at once, unsent bytes are lost. The handler hears nothing more. */
  destroy(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.destroy();
  }

  #attach(socket: Socket): void {
    const handle = (socket as unknown as { _handle: StreamHandle | null })._handle;
    if (socket instanceof TLSSocket || handle === null || typeof handle?.useUserBuffer !== 'function') {
      this.#listen(socket);
      return;
    }
    // node:net offers `onread` only for sockets that are made with it, so the handle moves to a new one.
    let first = true;
    const options = {
      handle,
      onread: {
        buffer: (): NodeBuffer => {
          if (first) {
            first = false;
            return this.#readBuffer as Buffer;
          }
          if (!this.#readBufferKept) return KEEP_BUFFER as unknown as NodeBuffer;
          this.#readBufferKept = false;
          this.#readBuffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
          return this.#readBuffer;
        },
        callback: (length: number, buffer: Uint8Array): boolean => {
          this.bytesRead += length;
          try {
            if (!this.#closed) this.#handler.onBytes(buffer as Buffer, 0, length);
          } catch (error) {
            this.#onFault(error);
          }
          return !this.#paused;
        },
      },
    };
    const owned = new Socket(options as unknown as ConstructorParameters<typeof Socket>[0]);
    (socket as unknown as { _handle: null })._handle = null;
    this.#socket = owned;
    this.#watch(owned);
    owned.resume();
  }

  #listen(socket: Socket): void {
    this.#readBuffer = null;
    socket.on('data', (chunk: Buffer) => {
      this.bytesRead += chunk.length;
      try {
        if (!this.#closed) this.#handler.onBytes(chunk, 0, chunk.length);
      } catch (error) {
        this.#onFault(error);
      }
    });
    this.#watch(socket);
    socket.resume();
  }

  #onFault(error: unknown): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.destroy();
    this.#handler.onClose(error instanceof Error ? error : new Error('handler threw no error'));
  }

  #watch(socket: Socket): void {
    socket.on('drain', () => {
      this.#writeBlocked = false;
      try {
        if (!this.#closed) this.#handler.onDrain();
      } catch (error) {
        this.#onFault(error);
      }
    });
    socket.on('error', (error: Error) => {
      this.#error = error;
    });
    const gone = (): void => {
      if (this.#closed) {
        socket.destroy();
        return;
      }
      this.#closed = true;
      socket.destroy();
      this.#handler.onClose(this.#error);
    };
    socket.on('end', gone);
    socket.on('close', gone);
  }
}

const END_TIMEOUT_MS = 2_000;
/** Anything that is no Uint8Array tells node:net to go on with the buffer it has. */
const KEEP_BUFFER = null;
