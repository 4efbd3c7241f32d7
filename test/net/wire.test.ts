import { once } from 'node:events';
import net from 'node:net';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { READ_BUFFER_BYTES, Wire, type WireHandler } from '../../src/net/wire.ts';
import { until } from '../support/worker.ts';

class Recorder implements WireHandler {
  wire!: Wire;
  received: Buffer = Buffer.alloc(0);
  readonly views: Buffer[] = [];
  drains = 0;
  readonly closes: (Error | null)[] = [];
  keep = false;
  onRead: (() => void) | null = null;

  onBytes(buffer: Buffer, start: number, end: number): void {
    const view = buffer.subarray(start, end);
    this.received = Buffer.concat([this.received, view]);
    this.views.push(view);
    if (this.keep) this.wire.keepReadBuffer();
    this.onRead?.();
  }
  onDrain(): void {
    this.drains++;
  }
  onClose(error: Error | null): void {
    this.closes.push(error);
  }
}

const servers: net.Server[] = [];
const sockets: net.Socket[] = [];

/** A wire on the accepting side, and the plain socket at its other end. */
async function connect(
  shared: Buffer | null = null,
): Promise<{ wire: Wire; peer: net.Socket; seen: Recorder }> {
  const server = net.createServer({ pauseOnConnect: true });
  servers.push(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const peer = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  const [socket] = (await once(server, 'connection')) as [net.Socket];
  const seen = new Recorder();
  const wire = Wire.adopt(socket, seen, shared);
  seen.wire = wire;
  sockets.push(peer);
  peer.on('error', () => {});
  return { wire, peer, seen };
}

afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  for (const server of servers.splice(0)) server.close();
});

describe('Wire', () => {
  test('a handler that throws loses its own socket, hears of it once, and nobody else does', async () => {
    const { peer, seen } = await connect();
    const other = await connect();
    seen.onRead = () => {
      throw new TypeError('a fault of ours');
    };
    const gone = once(peer, 'close');
    peer.on('error', () => {});
    peer.write('x');
    await gone;
    expect(seen.closes.map((error) => error?.message)).toEqual(['a fault of ours']);
    other.peer.write('still here');
    await until(() => other.seen.received.length === 10, 'the other wire');
  });

  test('gives bytes as views of one buffer that is used again', async () => {
    const shared = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
    const { peer, seen } = await connect(shared);
    peer.write('one');
    await until(() => seen.received.length === 3, 'the first read');
    peer.write('two');
    await until(() => seen.received.length === 6, 'the second read');
    expect(seen.received.toString()).toBe('onetwo');
    expect(seen.views.every((view) => view.buffer === shared.buffer)).toBe(true);
  });

  test('reads into another buffer after the handler kept the one it has', async () => {
    const { peer, seen } = await connect();
    seen.keep = true;
    peer.write('kept');
    await until(() => seen.received.length === 4, 'the first read');
    seen.keep = false;
    peer.write('later');
    await until(() => seen.received.length === 9, 'the second read');
    expect(seen.views[0]?.toString()).toBe('kept');
    expect(seen.views[0]?.buffer).not.toBe(seen.views[1]?.buffer);
  });

  test('reads nothing while it is paused, and everything after', async () => {
    const { wire, peer, seen } = await connect();
    seen.onRead = () => wire.pause();
    peer.write('a');
    await until(() => seen.received.length === 1, 'the first read');
    peer.write('b'.repeat(10_000));
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(seen.received.length).toBe(1);
    seen.onRead = null;
    wire.resume();
    await until(() => seen.received.length === 10_001, 'the rest');
  });

  test('says when the peer is slow and when it is not any more', async () => {
    const { wire, peer, seen } = await connect();
    peer.pause();
    const piece = Buffer.alloc(256 * 1024, 1);
    let written = 0;
    while (wire.write(piece) || !wire.writeBlocked) {
      written += piece.length;
      await new Promise((resolve) => setImmediate(resolve));
      if (written > 64 * 1024 * 1024) throw new Error('nothing ever blocked');
    }
    expect(seen.drains).toBe(0);
    let read = 0;
    peer.on('data', (chunk: Buffer) => {
      read += chunk.length;
    });
    peer.resume();
    await until(() => seen.drains === 1 && !wire.writeBlocked, 'the drain');
    await until(() => read === written + piece.length, 'every byte');
    expect(wire.bytesWritten).toBe(read);
  });

  test('tells whether a view was taken whole, and does not lose one that was not', async () => {
    const { wire, peer } = await connect();
    expect(wire.writeView(Buffer.from('small'))).toBe(true);
    peer.pause();
    let pieces = 1;
    while (wire.writeView(Buffer.alloc(1024 * 1024, pieces))) pieces++;
    let read = 0;
    peer.on('data', (chunk: Buffer) => {
      read += chunk.length;
    });
    peer.resume();
    await until(() => read === 5 + pieces * 1024 * 1024, 'every byte');
  });

  test('calls onClose once when the peer ends or breaks, and never after destroy', async () => {
    const ended = await connect();
    ended.peer.end('last');
    await until(() => ended.seen.closes.length > 0, 'the end');
    expect(ended.seen.received.toString()).toBe('last');
    const broken = await connect();
    broken.peer.resetAndDestroy();
    await until(() => broken.seen.closes.length > 0, 'the break');
    const own = await connect();
    own.wire.destroy();
    own.peer.end();
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect([ended.seen.closes.length, broken.seen.closes.length, own.seen.closes.length]).toEqual([1, 1, 0]);
    expect(own.wire.closed).toBe(true);
    expect(own.wire.write(Buffer.from('nothing'))).toBe(true);
  });

  test('hangUp closes at once, without waiting for the peer to close', async () => {
    const { wire, peer, seen } = await connect();
    peer.resume();
    peer.write('bye');
    seen.onRead = () => wire.hangUp();
    const chunks: Buffer[] = [];
    peer.on('data', (chunk: Buffer) => chunks.push(chunk));
    wire.write(Buffer.from('answer'));
    vi.useFakeTimers({ toFake: ['setTimeout'] });
    try {
      await once(peer, 'end');
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
    expect(Buffer.concat(chunks).toString()).toBe('answer');
    expect(wire.closed).toBe(true);
    expect(seen.closes).toEqual([]);
    wire.hangUp();
  });

  test('hangUp still delivers what a slow peer has not taken', async () => {
    const { wire, peer } = await connect();
    peer.pause();
    let written = 0;
    while (wire.write(Buffer.alloc(1024 * 1024))) written++;
    wire.hangUp();
    let received = 0;
    peer.on('data', (chunk: Buffer) => {
      received += chunk.length;
    });
    peer.resume();
    await once(peer, 'end');
    expect(received).toBe((written + 1) * 1024 * 1024);
  });

  test('end sends its last bytes although the peer is still talking', async () => {
    const { wire, peer, seen } = await connect();
    peer.write('x'.repeat(200_000));
    await until(() => seen.received.length > 0, 'the first read');
    const chunks: Buffer[] = [];
    peer.on('data', (chunk: Buffer) => chunks.push(chunk));
    wire.end(Buffer.from('goodbye'));
    await once(peer, 'end');
    expect(Buffer.concat(chunks).toString()).toBe('goodbye');
    const before = seen.received.length;
    peer.write('more');
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(seen.received.length).toBe(before);
  });

  test('end does not wait for ever for a peer that never reads but goes on talking', async () => {
    const { wire, peer } = await connect();
    peer.pause();
    while (wire.write(Buffer.alloc(1024 * 1024))) {}
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      wire.end(Buffer.from('goodbye'));
      peer.write('x');
      vi.advanceTimersByTime(1_000);
      await new Promise((resolve) => setImmediate(resolve));
      expect(peer.closed).toBe(false);
      peer.write('x');
      vi.advanceTimersByTime(2_000);
    } finally {
      vi.useRealTimers();
    }
    const talk = setInterval(() => peer.write('x'), 5);
    await new Promise((resolve) => peer.once('close', resolve));
    clearInterval(talk);
  });
});
